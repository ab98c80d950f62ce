"""Every job once on a real local Ray with a tracking server: what is sent and what is stored."""

import csv
import json
from pathlib import Path

import pytest

from jobs import compare, evaluate, find_lr, ingest, segment, train
from segmodel.core.errors import ConfigError
from segmodel.storage import store
from tests.support import standin
from tests.support.neptune_server import Sent, neptune_server

SIZE = 32
RECIPE = ["--arch", "classical", "--width", "4", "--image-size", "32", "--batch-size", "8"]


@pytest.fixture(scope="module")
def tracked(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sent]:
    """A folder that is named after a patient, with a folder of each job, and what was sent."""
    folder = tmp_path_factory.mktemp("tracked") / "PHANTOM_0001"
    return folder, run_all_jobs(folder)


def run_all_jobs(folder: Path, *more: str) -> Sent:
    archive, model, right = f"{folder}/archive", f"{folder}/model", f"{folder}/right"
    phantom = ["--format", "phantom", "--phantom-patients", "4", "--phantom-slices", "6"]
    standin.save(right, SIZE)
    with neptune_server() as sent:
        command = ["--archive", archive, *more]
        assert ingest.main([*command, *phantom, "--phantom-size", "32"]) == 0
        assert find_lr.main([*command, *RECIPE, "--output", f"{folder}/lr"]) == 0
        training = [*command, *RECIPE, "--output", model, "--epochs", "1", "--lr", "1e-3"]
        assert train.main(training) == 0
        run = ["--checkpoint", right, "--output", f"{folder}/run"]
        assert segment.main([*command, *run]) == 0
        both = ["--checkpoints", f"[{model}, {right}]", "--output", f"{folder}/compared"]
        assert compare.main([*command, *both]) == 0
        judged = ["--segmentation", f"{folder}/run", "--output", f"{folder}/evaluation"]
        assert evaluate.main([*command, *judged]) == 0
    return sent


def test_no_job_sends_a_patient_or_a_path_to_a_server(tracked: tuple[Path, Sent]) -> None:
    folder, sent = tracked
    assert "PHANTOM" not in sent.text
    assert str(folder.parent) not in sent.text
    assert not [name for name in sent.names if "hostname" in name or "monitoring" in name]
    assert sent.files.keys() == {"figures/history", "figures/lr_find", "figures/schedule"}
    assert {
        "archive/patients",
        "parameters/image_size",
        "lr_find/suggestion",
        "train/step/loss",
        "train/epoch/dice",
        "result/best_dice",
        "fingerprint/sha256",
        "counts/slices",
        "throughput/slices_per_second",
        "models/1/patient_dice",
    } <= sent.names


def test_run_folders_hold_what_is_tracked(tracked: tuple[Path, Sent]) -> None:
    folder, _ = tracked
    for job, name, values in (
        ("archive", "archive", {"patients": 4, "slices": 24}),
        ("lr", "parameters", {"archive": f"{folder}/archive", "image_size": 32}),
        ("model", "archive", {"slices": 24}),
        ("run", "counts", {"slices": 24, "quarantined": 0, "patients": 4}),
        ("evaluation", "evaluation/1", {"segmentation": "run"}),
        ("compared", "models/2", {"model": "right", "patient_dice": 1.0}),
    ):
        tracked = json.loads((folder / job / "tracked.json").read_text())
        assert tracked[name] | values == tracked[name]
        assert tracked["parameters"]["track_patients"] is False
    assert (folder / "run/throughput.csv").read_text().count("\n") >= 2


def test_a_range_test_writes_its_curve_and_is_never_replaced(tracked: tuple[Path, Sent]) -> None:
    folder, _ = tracked
    output = folder / "lr"
    with (output / "lr_find.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["lr"]) == pytest.approx(1e-7)
    assert 20 <= len(rows) <= 100
    assert (output / "figures/lr_find.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    names = [
        "find_lr.json",
        "lr_find.csv",
        "report.html",
        "samples.parquet",
        "split.json",
        "suggested_lr.json",
        "tracked.json",
    ]
    assert store.list_files(str(output)) == names
    flags = ["--archive", f"{folder}/archive", *RECIPE, "--output", str(output)]
    with pytest.raises(ConfigError, match="already holds a range test"):
        find_lr.main(flags)
    with pytest.raises(ConfigError, match=r"holds split\.json but no train\.json"):
        train.main(flags)
