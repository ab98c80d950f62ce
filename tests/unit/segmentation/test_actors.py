"""What a request's flags and the cluster come to, without Ray."""

import pytest

from segmodel.core.errors import ConfigError
from segmodel.runtime import ray_cluster
from segmodel.segmentation.actors import COMPILED_FROM, ActorRequest, Actors
from segmodel.settings.segment import SegmentConfig


def resolved(monkeypatch: pytest.MonkeyPatch, gpus: int, slices: int = 100, **flags: str) -> Actors:
    """On a cluster with so many GPUs, or else two machines of 4 CPUs."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster, "_resource", lambda name: gpus if name == "GPU" else 8)
    monkeypatch.setattr(ray_cluster, "_cpus_of_nodes", lambda: [4, 4])
    places = {"archive": "/a", "checkpoint": "/m", "output": "/r"}
    return ActorRequest.of(SegmentConfig(**places, **flags)).resolve(slices)  # type: ignore[arg-type]


def test_without_flags_there_is_an_actor_a_machine_or_one_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert resolved(monkeypatch, gpus=0) == Actors(
        use_gpu=False, fewest=1, most=2, cpus=4, batch_size=32, compiled=False
    )
    assert resolved(monkeypatch, gpus=3) == Actors(
        use_gpu=True, fewest=1, most=3, cpus=None, batch_size=128, compiled=False
    )


def test_workers_and_batch_size_are_taken_as_they_were_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actors = resolved(monkeypatch, gpus=0, workers="2:4", batch_size=16)  # type: ignore[arg-type]
    assert (actors.fewest, actors.most, actors.cpus, actors.batch_size) == (2, 4, 2, 16)
    assert str(actors) == "actors: 2 to 4, on CPUs"
    with pytest.raises(ConfigError, match="9 workers need a CPU each, and this cluster has 8"):
        resolved(monkeypatch, gpus=0, workers="9")


@pytest.mark.parametrize(
    ("gpus", "slices", "flag", "compiled"),
    [
        (1, COMPILED_FROM, "auto", True),
        (1, COMPILED_FROM - 1, "auto", False),
        (0, COMPILED_FROM, "auto", False),
        (0, 1, "on", True),
        (1, COMPILED_FROM, "off", False),
    ],
)
def test_the_network_is_compiled_for_large_archives_on_gpus_or_when_asked(
    monkeypatch: pytest.MonkeyPatch, gpus: int, slices: int, flag: str, compiled: bool
) -> None:
    assert resolved(monkeypatch, gpus, slices, compile=flag).compiled == compiled


def test_of_a_few_shards_no_actor_takes_more_than_its_share() -> None:
    actors = Actors(use_gpu=False, fewest=2, most=2, cpus=1, batch_size=32, compiled=False)
    few, many = actors.pool(shards=3), actors.pool(shards=100)
    assert (few.max_tasks_in_flight_per_actor, many.max_tasks_in_flight_per_actor) == (2, 4)
