"""jobs.compare on a real local Ray, with two models whose answers are known."""

import csv
from pathlib import Path

import pytest
import torch

from jobs import compare
from segmodel import checkpoint
from segmodel.archive import Archive
from segmodel.comparison import _names
from segmodel.errors import ArchiveError
from tests import standin
from tests.conftest import SIZE


def test_two_checkpoints_are_compared_on_patients_that_neither_has_seen(
    phantom_archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patients = sorted(set(Archive(phantom_archive).index()["patient_id"].to_pylist()))
    right = standin.save(str(tmp_path / "right"), SIZE, tuple(patients[:2]))
    nothing = standin.flair_threshold_model()
    with torch.no_grad():
        nothing.head.bias[1] = -1000.0  # no pixel is ever tumor
    checkpoint.save(str(tmp_path / "nothing"), nothing, standin.card(SIZE, (patients[2],)))
    output = tmp_path / "comparison"
    flags = ["--archive", phantom_archive, "--output", str(output), "--checkpoints", f"[{right}, {tmp_path}/nothing]"]
    assert compare.main([*flags, "--tracking", "none"]) == 0
    printed = capsys.readouterr().out
    assert "evaluating on 2 patients that no model has learned from" in printed  # one with a lesion, one without
    rows = list(csv.DictReader((output / "compare.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["right", "nothing"]
    assert [float(row["dice"]) for row in rows] == [1.0, 0.0]
    assert [float(row["patient_dice"]) for row in rows] == [1.0, 0.5]  # nothing where nothing is has Dice 1
    assert [row["training_seconds"] for row in rows] == ["", ""]
    assert rows[0]["gflop_per_slice"] == rows[1]["gflop_per_slice"]
    assert (output / "compare.md").read_text() in printed
    assert (output / "figures/compare.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_patient_that_is_new_to_all_models_nothing_is_compared(phantom_archive: str, tmp_path: Path) -> None:
    patients = tuple(sorted(set(Archive(phantom_archive).index()["patient_id"].to_pylist())))
    folders = [standin.save(str(tmp_path / name), SIZE, patients) for name in ("a", "b")]
    flags = ["--archive", phantom_archive, "--output", str(tmp_path / "out"), "--checkpoints", f"[{folders[0]}, {folders[1]}]"]
    with pytest.raises(ArchiveError, match="every annotated patient was seen in the training"):
        compare.main([*flags, "--tracking", "none"])


def test_models_are_named_by_what_tells_their_folders_apart() -> None:
    assert _names(["s3://a/one", "s3://a/two"]) == ["one", "two"]
    assert _names(["/runs/one/best", "/runs/two/best"]) == ["one/best", "two/best"]
