from types import SimpleNamespace
from typing import Any

import pytest
import ray

from segmodel.runs.run_file import UNDECIDED
from segmodel.runtime import ray_cluster
from segmodel.segmentation import precision
from segmodel.segmentation.actors import Actors
from segmodel.segmentation.precision import decide
from tests.support import segmented

Looks = list[tuple[str, int | None]]
"""Where the model was looked at, and with how many threads."""


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """A driver finds fp32 faster; workers with two CPUs each find bf16 faster."""
    found: Looks = []

    def here(folder: str, threads: int | None) -> str:
        found.append(("driver", threads))
        return "fp32"

    def there(folder: str, threads: int | None) -> str:
        found.append(("worker", threads))
        return "bf16"

    def remote(num_cpus: int) -> Any:
        return lambda function: SimpleNamespace(remote=there)

    monkeypatch.setattr(precision, "find_faster_precision", here)
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray_cluster, "get_result", lambda result: result)
    return found


def decided(begun: str, alone: bool = True, use_gpu: bool = False) -> str:
    run = segmented.new_run(precision=begun)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_cluster, "is_single_machine", lambda: alone)
        found = decide(run, "/m", Actors(use_gpu, 1, 1, None if use_gpu else 2, 32, compiled=False))
    assert found == segmented.new_run(precision=found.fingerprint.precision)
    return found.fingerprint.precision


def test_a_run_on_one_machine_looks_there(looks: Looks) -> None:
    assert decided(UNDECIDED) == "fp32"
    assert looks == [("driver", None)]


def test_a_run_on_a_cluster_looks_where_the_workers_are(looks: Looks) -> None:
    assert decided(UNDECIDED, alone=False) == "bf16"
    assert looks == [("worker", 2)]


@pytest.mark.parametrize("begun", ["fp32", "bf16"])
@pytest.mark.parametrize("use_gpu", [False, True])
def test_a_run_that_goes_on_keeps_its_precision(looks: Looks, begun: str, use_gpu: bool) -> None:
    assert decided(begun, use_gpu=use_gpu) == begun
    assert looks == []


def test_a_run_on_gpus_takes_bfloat16_without_a_look(looks: Looks) -> None:
    assert decided(UNDECIDED, use_gpu=True) == "bf16"
    assert looks == []


@pytest.mark.parametrize(
    ("nodes", "alone"),
    [
        ([(True, 2)], True),
        ([(True, 2), (False, 4)], True),
        ([(True, 2), (True, 4)], False),
        ([(True, 0)], False),  # a head that starts workers when asked
    ],
)
def test_a_cluster_is_this_machine_alone_if_no_other_node_computes(
    monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[bool, int]], alone: bool
) -> None:
    known = [{"Alive": alive, "Resources": {"CPU": cpus}} for alive, cpus in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: known)
    assert ray_cluster.is_single_machine() == alone
