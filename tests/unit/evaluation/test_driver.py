"""jobs.evaluate without Ray: tasks run one after the other in this process."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmodel.core.errors import ConfigError, LeaseError
from segmodel.evaluation import driver
from segmodel.evaluation.driver import evaluate
from segmodel.settings.evaluate import EvaluateConfig
from segmodel.storage import folder_lock
from tests.support.segmented import write_run
from tests.unit.evaluation.test_pairing import annotated, right_half, write


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(function: Callable[..., Any], items: Iterable[Any], *shared: object) -> Iterator[Any]:
        return (function(item, *shared) for item in items)

    monkeypatch.setattr(driver, "map_on_ray", here)
    monkeypatch.setattr(driver.ray_cluster, "connect", nullcontext)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., EvaluateConfig]:
    """Patient A is segmented well, B is not segmented; A's id is seen or not as a test says."""

    def made(seen: str | None = "no", **changes: object) -> EvaluateConfig:
        archive = tmp_path / "archive"
        write(archive, annotated("A", 3, 2), annotated("B", 3, 1))
        truth = np.zeros((4, 4), bool)
        truth[0] = True
        masks = {"A_1": truth, "A_2": right_half(), "A_3": np.zeros((4, 4), bool)}
        write_run(tmp_path / "run", archive, masks, {"A": seen})
        settings = {
            "archive": str(archive),
            "segmentation": str(tmp_path / "run"),
            "output": str(tmp_path / "evaluation"),
            "tracking": "none",
        }
        return EvaluateConfig(**(settings | changes))  # type: ignore[arg-type]

    return made


def test_what_can_be_compared_is_and_the_rest_is_listed(
    config: Callable[..., EvaluateConfig], tmp_path: Path
) -> None:
    found = evaluate(config())
    (case,) = found.outcomes["run"].cases
    # Slice 1: 4 of 4 voxels right; slice 2: 4 true, 8 predicted, 2 shared.
    assert case.dice == pytest.approx(2 * (4 + 2) / (8 + 12))
    with (tmp_path / "evaluation" / "not_compared.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["patient_id"], row["reason"]) == ("B", "not segmented")
    assert "1 annotated series of run could not be compared and are in no number" in found.table


def test_a_patient_of_whom_an_old_checkpoint_says_nothing_is_in_the_table(
    config: Callable[..., EvaluateConfig], tmp_path: Path
) -> None:
    found = evaluate(config(seen=None))
    assert "Patients: perhaps seen" in found.table
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["mean_of"].startswith("perhaps seen")


def test_an_output_that_cannot_be_written_is_found_before_anything_is_compared(
    config: Callable[..., EvaluateConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "map_on_ray", lambda *_: pytest.fail("compared"))
    wanted = config()
    (tmp_path / "evaluation").write_text("a file, so that no folder can be made")
    with pytest.raises(ConfigError, match="evaluation: this job cannot write there"):
        evaluate(wanted)


def test_two_evaluations_do_not_write_into_one_folder_at_once(
    config: Callable[..., EvaluateConfig], tmp_path: Path
) -> None:
    with folder_lock.acquire_lock(str(tmp_path / "evaluation")), pytest.raises(LeaseError):
        evaluate(config())


def test_an_evaluation_is_replaced_with_overwrite_only(
    config: Callable[..., EvaluateConfig],
) -> None:
    wanted = config()
    evaluate(wanted)
    with pytest.raises(ConfigError, match="--overwrite"):
        evaluate(wanted)
