"""Applies a function to many arguments with Ray tasks."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from segmodel.runtime import ray_cluster


def map_on_ray(
    function: Callable[..., Any], items: Iterable[Any], *shared: object
) -> Iterator[Any]:
    """Results of a function, each computed by a Ray task, in the order in which they are ready.

    Few items wait at a time, so that there may be many of them.

    Args:
        function: of an item and of `shared`.
        items: one for each task.
        shared: further arguments, the same for all tasks; stored once.
    """
    task = ray.remote(function)
    stored = [ray.put(value) for value in shared]
    running: list[Any] = []
    for item in items:
        running.append(task.remote(item, *stored))
        if len(running) >= 2 * ray_cluster.cpus():
            ready, running = ray.wait(running)
            yield from map(ray_cluster.get_result, ready)
    while running:
        ready, running = ray.wait(running)
        yield from map(ray_cluster.get_result, ready)
