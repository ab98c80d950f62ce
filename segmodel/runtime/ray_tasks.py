"""Applies a function to many arguments with Ray tasks."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from segmodel.runtime import ray_cluster

WORKER_DIED = (WorkerCrashedError, OutOfMemoryError)


def why_died(error: BaseException) -> str:
    """Why the process that read a patient died, for people."""
    if isinstance(error, OutOfMemoryError):
        return "its reader needed more memory than there is"
    return "its reader died"


def map_on_ray(
    function: Callable[..., Any],
    items: Iterable[Any],
    *shared: object,
    lost: Callable[[Any, str], Any] | None = None,
) -> Iterator[Any]:
    """Results of a function, each computed by a Ray task, in the order in which they are ready.

    Few items wait at a time, so that there may be many of them.

    Args:
        function: of an item and of `shared`.
        items: one for each task.
        shared: further arguments, the same for all tasks; stored once.
        lost: of an item whose process died and of the reason: its result. Without it the process
            is tried again, and its death ends the job.
    """
    task: Any = ray.remote(function)
    if lost is not None:
        task = task.options(max_retries=0)
    stored = [ray.put(value) for value in shared]
    running: dict[Any, Any] = {}

    def one_result() -> Any:
        (ready,), _ = ray.wait(list(running))
        item = running.pop(ready)
        try:
            return ray_cluster.get_result(ready)
        except WORKER_DIED as error:
            if lost is None:
                raise
            return lost(item, why_died(error))

    for item in items:
        running[task.remote(item, *stored)] = item
        if len(running) >= 2 * ray_cluster.cpus():
            yield one_result()
    while running:
        yield one_result()
