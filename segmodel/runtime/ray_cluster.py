"""Connects a job to a Ray cluster, and counts what the cluster has."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private.authentication.authentication_token_setup import _enable_token_auth
from ray.exceptions import RayTaskError

from segmodel.core.errors import ConfigError, SegmodelError
from segmodel.core.progress import say

API_SERVER = "RAY_API_SERVER_ADDRESS"
"""Environment variable: where Ray's state API asks."""
KEEP_FREED_MEMORY = {
    "env_vars": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
    }
}
"""Runtime environment of workers that run a network on CPUs: the process keeps freed memory.

Otherwise glibc returns every large tensor to the kernel, which zeroes the pages at the next
allocation: a third of a forward pass's time. One arena, since only the first keeps large blocks.
"""
CONNECT_TIMEOUT_S = 5.0
"""A living cluster accepts a connection, and answers a request, within this time each."""
RAY = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""A gRPC method that a cluster knows at HOST:PORT; it changes nothing."""
RAY_CLIENT = "/ray.rpc.RayletDriver/ClusterInfo"
"""One that it knows at ray://HOST:PORT."""
NO_ANSWER = (
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
"""Statuses from where Ray is not."""


@contextmanager
def connect() -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS or of the last `ray start`, or start one for this job."""
    if ray.is_initialized():
        yield
        return
    # By default Ray reports usage to its makers, which a hospital may not want.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        _check_address(address)
    if address or _current_cluster_answers():
        with _connection():
            yield
    else:
        say("starting Ray on this machine")  # takes seconds
        with _local_cluster():
            yield


def _check_address(address: str) -> None:
    """Check that a cluster answers at RAY_ADDRESS; Ray itself would try for minutes.

    Raises:
        ConfigError: it is not the address of a cluster, or no cluster answers.
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
            f"RAY_ADDRESS is {address!r}: a job connects to HOST:PORT (6379 by default) or "
            "ray://HOST:PORT; an http:// address is for `ray job submit --address`"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        _require_cluster(False, address, str(error))
    service = RAY_CLIENT if address.startswith("ray://") else RAY
    _require_cluster(_knows(service, place), address, "what listens there is not Ray")


def _require_cluster(answers: bool, address: str, reason: str) -> None:
    """Raise ConfigError unless a cluster answers."""
    if not answers:
        raise ConfigError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({reason}): start it, or unset "
            "RAY_ADDRESS to use this machine alone"
        )


def _knows(method: str, place: str) -> bool:
    """Whether a gRPC server at HOST:PORT knows a method, even if it refuses a caller without token.

    A port that accepts connections may be the dashboard, or a proxy that answers for every host.
    """
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return True  # checking would need the cluster's certificates
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=CONNECT_TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code() not in NO_ANSWER
    return True


def _check_token_file() -> None:
    """Check that Ray can store the secret of a cluster that it starts here.

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
            f"Ray keeps the secret of its cluster in {file}, which cannot be used ({reason}): set "
            "HOME to a folder of yours, or RAY_AUTH_TOKEN_PATH to a file that holds a secret"
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
    """Start a cluster on this machine for this job.

    Ray Train asks Ray's state API about its actors. Without an address, that API searches the
    machine's processes for Ray: with two clusters it may find the wrong one, or fail.
    """
    _check_token_file()
    if "RAY_AUTH_MODE" not in os.environ:
        _enable_token_auth()  # Ray would do the same, with a warning
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
    """Whether the cluster of the last `ray start` lives. Ray waits minutes for a dead one."""
    # As Ray does.
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
    current = Path(folder) / "ray" / "ray_current_cluster"
    try:
        host, _, port = current.read_text().strip().rpartition(":")
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except (OSError, ValueError):
        return False


def should_use_gpu(demand: bool, forbid: bool, workers: int) -> bool:
    """Whether the workers of a job use GPUs.

    Args:
        demand: they must.
        forbid: they must not.
        workers: the fewest that the job takes, at least one GPU or one CPU each.

    Raises:
        ConfigError: the cluster lacks a demanded GPU or room for the workers, and cannot grow.
    """
    # A cluster that scales from zero shows no GPU before a job asks for one, as `--gpu` does.
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
            f"--workers: {workers} workers need a {'GPU' if use_gpu else 'CPU'} each, and this "
            f"cluster has {room}; give fewer, or set RAY_ADDRESS to that of a larger cluster, or "
            "of this one if it grows"
        )
    return use_gpu


def cpus() -> int:
    """CPUs of all nodes together; 1 where there are none yet, in a cluster that scales from 0."""
    return max(1, int(_resource("CPU")))


def cpus_per_worker(workers: int) -> int:
    """The most CPUs that each of `workers` can have; a worker's CPUs are of one node."""
    nodes = _cpus_of_nodes()
    for each in range(max(nodes, default=1), 1, -1):
        if sum(have // each for have in nodes) >= workers:
            return each
    return 1


def default_workers(use_gpu: bool) -> tuple[int, int]:
    """(min, max) actors by default: at most one per GPU, or one per node on CPUs."""
    return 1, max(1, int(_resource("GPU")) if use_gpu else len(_cpus_of_nodes()))


def is_single_machine() -> bool:
    """Whether the cluster is this machine alone, and cannot start others."""
    nodes = _living_nodes()
    return len(nodes) == 1 and nodes[0]["Resources"].get("CPU", 0) >= 1


def _cpus_of_nodes() -> list[int]:
    """CPUs of each node that has any."""
    found = [int(node["Resources"].get("CPU", 0)) for node in _living_nodes()]
    return [have for have in found if have]


def _living_nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def get_result(reference: Any) -> Any:
    """Wait for a task's result; raise its SegmodelError or OSError without Ray's traceback."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, SegmodelError | OSError):
            raise error.cause from None
        raise


def configure_ray_data() -> None:
    """Configure Ray Data: no messages or progress bars in a job's log, pools grow, actors restart.

    A pool of actors grows when its actors have as many calls as they can take at once. By Ray's
    default, 1.75 times as many must be waiting, which is more than actors get here.
    """
    # These imports take seconds, which other jobs need not pay.
    from ray.data import DataContext
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It would warn that its bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    # Ray Data gives each actor references to its class, arguments and settings in the object store.
    # Ray then prints an error: a restart would fail if those were lost. Send the values instead.
    operator_class: Any = ActorPoolMapOperator
    operator_class._map_transformer_ref = property(lambda operator: operator._map_transformer)
    operator_class._data_context_ref = property(lambda operator: operator.data_context)


def _resource(name: str) -> float:
    return float(ray.cluster_resources().get(name, 0))  # type: ignore[no-untyped-call]
