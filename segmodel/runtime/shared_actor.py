"""An object that all workers of a job share, in a process beside the driver."""

import uuid
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def start_shared_actor(kind: type) -> "SharedActor":
    """Start an object in a process beside the driver, for all workers.

    It lives as long as the SharedActor that this returns.

    Args:
        kind: the object's class, which takes no arguments. Its methods run one after the other,
            coroutines concurrently.
    """
    name = f"segmodel-{uuid.uuid4().hex}"
    # On the driver's node: other nodes may go, and the job needs this process.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here, "name": name}
    actor_class: Any = ray.remote(kind)
    return SharedActor(name, actor_class.options(**options).remote())


class SharedActor:
    """Calls the methods of an actor and waits for what they return.

    Another process gets the actor's name and looks it up. An actor handle inside an actor's
    constructor arguments would be a reference to the object store, and Ray warns that a restart may
    not find it.
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
