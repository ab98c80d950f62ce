"""The Ray cluster that a job runs on."""

import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private.authentication.authentication_token_setup import _enable_token_auth
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segmodel.core.errors import ConfigError, SegmodelError

API_SERVER = "RAY_API_SERVER_ADDRESS"
"""Environment variable: where Ray's state API asks."""
KEEP_FREED_MEMORY = {
    "env_vars": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
    }
}
"""Runtime environment of workers that run a network on CPUs: what is freed stays with the process.

Otherwise glibc gives every large tensor back to the kernel, which zeroes its pages each time that they are wanted: a third of a
forward pass's time. One arena, since only the first one keeps large blocks.
"""


CONNECT_TIMEOUT_S = 5.0
"""A cluster that lives accepts a connection within this time."""


@contextmanager
def connect() -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS or of the last `ray start`, or start one here for as long as the job lasts."""
    if ray.is_initialized():
        yield
        return
    # Ray reports usage to its makers unless told otherwise: not from a hospital's machine by default.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        _check_address(address)
    if address or _current_cluster_answers():
        with _connection():
            yield
    else:
        with _local_cluster():
            yield


def _check_address(address: str) -> None:
    """Look whether a cluster answers at RAY_ADDRESS; Ray itself would try for minutes.

    Raises:
        ConfigError: it is no address of a cluster, or no cluster answers there.
    """
    if address == "local":
        return
    if address == "auto":
        _require_cluster(_current_cluster_answers(), address, "none was started here")
        return
    place = address.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if "://" in place or not host or not port.isdecimal():
        raise ConfigError(
            f"RAY_ADDRESS is {address!r}: a job connects to HOST:PORT (6379 by default) or ray://HOST:PORT; an "
            "http:// address is for `ray job submit --address`"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        _require_cluster(False, address, str(error))
    _require_cluster(_speaks_grpc(place), address, "what listens there is not Ray")


def _require_cluster(answers: bool, address: str, reason: str) -> None:
    """Raise ConfigError unless a cluster answers."""
    if not answers:
        raise ConfigError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({reason}): start it, or unset RAY_ADDRESS to "
            "use this machine alone"
        )


def _speaks_grpc(place: str) -> bool:
    """Whether gRPC, Ray's protocol, finds its like at HOST:PORT. The dashboard, for one, does not speak it."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return True  # a look would need the cluster's certificates
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def _check_token_file() -> None:
    """See to it that Ray can keep the secret of a cluster that it starts here.

    Raises:
        ConfigError: it cannot; the message names the file.
    """
    elsewhere = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if elsewhere or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    file = Path("~/.ray/auth_token")
    try:
        file = file.expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        usable, reason = _readable_or_new(file), "no permission"
    except (OSError, RuntimeError) as error:
        usable, reason = False, str(error)
    if not usable:
        raise ConfigError(
            f"Ray keeps the secret of its cluster in {file}, which cannot be used ({reason}): set HOME to a "
            "folder of yours, or RAY_AUTH_TOKEN_PATH to a file that holds a secret"
        )


def _readable_or_new(file: Path) -> bool:
    return os.access(file, os.R_OK) if file.exists() else os.access(file.parent, os.W_OK)


@contextmanager
def _connection(address: str | None = None, **settings: Any) -> Iterator[None]:
    ray.init(address, logging_level=logging.WARNING, **settings)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _local_cluster() -> Iterator[None]:
    """A cluster of this machine alone, whose processes find it and no other.

    Ray Train asks Ray's state API about its actors. Without an address, that API looks for Ray among
    the machine's processes: with two clusters it finds the other one, or fails.
    """
    _check_token_file()
    if "RAY_AUTH_MODE" not in os.environ:
        _enable_token_auth()  # as Ray itself would, which then warns that nobody had asked for it
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    before = os.environ.get(API_SERVER)
    os.environ[API_SERVER] = f"http://127.0.0.1:{port}"
    try:
        with _connection("local", dashboard_port=port):
            yield
    finally:
        os.environ.pop(API_SERVER)
        if before is not None:
            os.environ[API_SERVER] = before


def _current_cluster_answers() -> bool:
    """Whether the cluster of the last `ray start` is alive. Ray would wait minutes for a dead one."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - where Ray keeps it
    current = Path(folder) / "ray" / "ray_current_cluster"
    try:
        host, _, port = current.read_text().strip().rpartition(":")
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except (OSError, ValueError):
        return False


def should_use_gpu(demand: bool, forbid: bool, workers: int) -> bool:
    """Whether the workers of a job take GPUs.

    Args:
        demand: they must.
        forbid: they must not.
        workers: the fewest that the job takes, one GPU or one CPU each at least.

    Raises:
        ConfigError: the cluster has no GPU that is demanded, or no room for the workers, and is not known to grow.
    """
    # A cluster that scales from zero shows no GPU before somebody asks for one: `--gpu` asks.
    grows = os.environ.get("RAY_ADDRESS") is not None
    has_gpu = _resource("GPU") >= 1
    if demand and not has_gpu and not grows:
        raise ConfigError(
            "--gpu: this machine has no GPU that Ray can see; leave --gpu out to use CPUs"
        )
    use_gpu = not forbid and (demand or has_gpu)
    room = int(_resource("GPU")) if use_gpu else sum(_cpus_of_nodes())
    if workers > room and not grows:
        raise ConfigError(
            f"--workers: {workers} workers need a {'GPU' if use_gpu else 'CPU'} each, and this cluster has {room}; give fewer, "
            "or set RAY_ADDRESS to that of a larger one, or of this one if it grows"
        )
    return use_gpu


def cpus() -> int:
    """CPUs of all nodes together, at least 1: one that starts its nodes when asked has none yet."""
    return max(1, int(_resource("CPU")))


def cpus_per_worker(workers: int) -> int:
    """The most CPUs that each of `workers` can have: a worker takes them from one node."""
    nodes = _cpus_of_nodes()
    for each in range(max(nodes, default=1), 1, -1):
        if sum(have // each for have in nodes) >= workers:
            return each
    return 1


def default_workers(use_gpu: bool) -> tuple[int, int]:
    """(min, max) actors when nobody says how many: one a GPU; on CPUs one a node."""
    return 1, max(1, int(_resource("GPU")) if use_gpu else len(_cpus_of_nodes()))


def is_single_machine() -> bool:
    """Whether the cluster is this machine, and not one that starts others when asked."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return len(nodes) == 1 and nodes[0]["Resources"].get("CPU", 0) >= 1


def _cpus_of_nodes() -> list[int]:
    """CPUs of each node that has any."""
    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [have for have in found if have]


def get_result(reference: Any) -> Any:
    """What a task returns; an error made for users, or of disks and networks, comes as it was, without Ray's traceback."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, SegmodelError | OSError):
            raise error.cause from None
        raise


def start_shared_actor(kind: type) -> "SharedActor":
    """An object in a process beside the driver, for all workers; it lives as long as what this returns.

    Args:
        kind: the object's class, made without arguments. Calls run one after the other, coroutines at once.
    """
    name = f"segmodel-{uuid.uuid4().hex}"
    # Not on another node: a job cannot do without it, and other nodes may go.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here, "name": name}
    actor_class: Any = ray.remote(kind)
    return SharedActor(name, actor_class.options(**options).remote())


class SharedActor:
    """Calls the methods of an actor and waits for what they return.

    Another process gets the actor's name and looks it up. An actor handle inside an actor's constructor
    arguments would be a reference to the object store, and Ray warns that a restart may not find it.
    """

    def __init__(self, name: str, actor: Any) -> None:
        self._name, self._actor = name, actor

    def __reduce__(self) -> tuple[Callable[[str], "SharedActor"], tuple[str]]:
        return _find_shared, (self._name,)

    def kill(self) -> None:
        """End the process."""
        ray.kill(self._actor)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):  # what pickle looks for
            raise AttributeError(name)
        return lambda *arguments: ray.get(getattr(self._actor, name).remote(*arguments))


def _find_shared(name: str) -> SharedActor:
    return SharedActor(name, ray.get_actor(name))


def configure_ray_data() -> None:
    """Keep Ray Data's messages and redrawn progress bars out of a job's log, let its pools grow and its actors restart.

    A pool of actors gets another one when all calls that its actors can take at once are under way. By Ray's own default 1.75
    times as many must wait as well, more than an actor is given here: a pool would stay as small as it was.
    """
    from ray.data import DataContext  # costs seconds that other jobs need not pay
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(
        logging.ERROR
    )  # it warns that its bars are off
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    # Ray Data puts an actor's class with its arguments, and its settings, into the object store, and gives each actor
    # references to them. Ray prints an error then: a restart fails once they are lost. They are small: send them along.
    operator_class: Any = ActorPoolMapOperator
    operator_class._map_transformer_ref = property(lambda operator: operator._map_transformer)
    operator_class._data_context_ref = property(lambda operator: operator.data_context)


def _resource(name: str) -> float:
    return float(ray.cluster_resources().get(name, 0))  # type: ignore[no-untyped-call]
