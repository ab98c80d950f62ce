"""jobs.export in this process, without Ray."""

from contextlib import nullcontext

import pytest

from segmodel.export import driver
from segmodel.runtime import ray_cluster


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(function, items, *shared):
        return (function(item, *shared) for item in items)

    monkeypatch.setattr(ray_cluster, "connect", nullcontext)
    monkeypatch.setattr(driver, "map_on_ray", here)
