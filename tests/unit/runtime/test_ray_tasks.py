"""What becomes of items whose process dies; without Ray."""

from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from segmodel.runtime import ray_cluster, ray_tasks


class FakeTask:
    """Stands for a remote function: an item that is an exception is raised."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def options(self, **_: object) -> "FakeTask":
        return self

    def remote(self, item: Any) -> Callable[[], Any]:
        def result() -> Any:
            if isinstance(item, Exception):
                raise item
            return self.function(item)

        return result


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tasks.ray, "remote", FakeTask)
    monkeypatch.setattr(ray_tasks.ray, "wait", lambda running: (running[:1], running[1:]))
    monkeypatch.setattr(ray_cluster, "cpus", lambda: 1)
    monkeypatch.setattr(ray_cluster, "get_result", lambda result: result())


ITEMS = [1, WorkerCrashedError(), 2, OutOfMemoryError("too much"), 3]


def test_an_item_whose_process_died_has_the_result_that_the_caller_gives_it() -> None:
    found = list(ray_tasks.map_on_ray(lambda item: 10 * item, ITEMS, lost=lambda _, why: why))
    assert found == [10, "its reader died", 20, "its reader needed more memory than there is", 30]


def test_otherwise_the_death_ends_the_job() -> None:
    with pytest.raises(WorkerCrashedError):
        list(ray_tasks.map_on_ray(lambda item: 10 * item, ITEMS))
