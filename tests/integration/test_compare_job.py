"""jobs.compare on a real local Ray, with two models whose answers are known."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from jobs import compare
from segmodel.archive.reader import Archive
from segmodel.core import schema
from segmodel.core.errors import ArchiveError, CheckpointError
from segmodel.evaluation.comparison import _names
from segmodel.ingestion.driver import ingest
from segmodel.models import checkpoint
from segmodel.settings.ingest import IngestConfig
from tests.conftest import SIZE
from tests.support import scans, standin

LARGE = SIZE * 3 // 2


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
    flags = [
        "--archive",
        phantom_archive,
        "--output",
        str(output),
        "--checkpoints",
        f"[{right}, {tmp_path}/nothing]",
    ]
    assert compare.main([*flags, "--precision", "bf16", "--tracking", "none"]) == 0
    printed = capsys.readouterr().out
    assert (
        "evaluating on 2 patients that no model was trained on" in printed
    )  # one with a lesion, one without
    rows = list(csv.DictReader((output / "compare.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["right", "nothing"]
    assert [float(row["dice"]) for row in rows] == [1.0, 0.0]
    assert [float(row["patient_dice"]) for row in rows] == [
        1.0,
        0.5,
    ]  # nothing where nothing is has Dice 1
    assert [float(row["tumor_patient_dice"]) for row in rows] == [1.0, 0.0]
    assert [row["training_seconds"] for row in rows] == ["", ""]
    assert rows[0]["gflop_per_slice"] == rows[1]["gflop_per_slice"]
    assert [row["precision"] for row in rows] == ["bf16", "bf16"]
    assert (output / "compare.md").read_text() in printed
    assert (output / "figures/compare.png").read_bytes().startswith(b"\x89PNG")


def mixed(phantom_archive: str, folder: Path) -> Archive:
    """The same archive, with every third slice cut to 32x20 pixels and every third to 12x16."""
    rows = pq.read_table(scans.files(phantom_archive)[0]).to_pylist()
    for number, row in enumerate(rows):
        height, width = ((SIZE, SIZE), (SIZE, 20), (12, 16))[number % 3]
        for name, channels in (("pixels", 3), ("mask", 1)):
            array = np.frombuffer(row[name], np.uint8).reshape(SIZE, SIZE, channels)
            row[name] = array[:height, :width].tobytes()
        row |= {"height": height, "width": width}
    table = pa.Table.from_pylist(rows, schema=schema.ARCHIVE)
    scans.write(
        folder,
        *(
            table.filter(pc.field("patient_id") == name)
            for name in table["patient_id"].unique().to_pylist()
        ),
    )
    return Archive(str(folder))


def test_dice_is_that_of_the_slices_own_pixels_whatever_a_model_was_trained_at(
    phantom_archive: str, tmp_path: Path
) -> None:
    """Two models call every pixel tumor: with T tumor voxels among N, the Dice is 2T / (N + T)."""
    everything = standin.flair_threshold_model()
    with torch.no_grad():
        everything.head.bias[1] = 1000.0
    archive = mixed(phantom_archive, tmp_path / "archive")
    seen = archive.index()["patient_id"][0].as_py()
    for size in (SIZE, LARGE):
        checkpoint.save(str(tmp_path / str(size)), everything, standin.card(size, (seen,)))
    masks = [
        table.filter(pc.field("patient_id") != seen)["mask"]
        for table in archive.read_columns(["patient_id", "mask"])
    ]
    truth = np.frombuffer(
        b"".join(mask.as_py() for column in masks for mask in column), dtype=np.uint8
    )
    flags = [
        "--archive",
        archive.uri,
        "--output",
        str(tmp_path / "out"),
        "--mixed-sizes",
        "--tracking",
        "none",
    ]
    assert compare.main([*flags, "--checkpoints", f"[{tmp_path}/{SIZE}, {tmp_path}/{LARGE}]"]) == 0
    small, large = csv.DictReader((tmp_path / "out/compare.csv").read_text().splitlines())
    expected = 2 * truth.sum() / (len(truth) + truth.sum())
    assert [float(row["dice"]) for row in (small, large)] == pytest.approx(
        [expected, expected], rel=1e-9
    )
    assert float(large["gflop_per_slice"]) == pytest.approx(2.25 * float(small["gflop_per_slice"]))


def test_both_networks_are_trained_on_the_same_patients_and_compared_on_others(
    local_ray: None, tmp_path: Path
) -> None:
    output, archive = tmp_path / "out", str(tmp_path / "archive")
    ingest(
        IngestConfig(
            archive=archive,
            format="phantom",
            phantom_patients=3,
            phantom_slices=20,
            phantom_size=SIZE,
            tracking="none",
        )
    )
    flags = [
        "--archive",
        archive,
        "--output",
        str(output),
        "--image-size",
        str(SIZE),
        "--epochs",
        "1",
        "--width",
        "4",
        "--precision",
        "fp32",  # training and comparison look for the faster precision on their own
    ]
    assert (
        compare.main(
            [*flags, "--encoder", "resnet18", "--encoder-weights", "none", "--tracking", "none"]
        )
        == 0
    )
    rows = {
        row["model"]: row
        for row in csv.DictReader((output / "compare.csv").read_text().splitlines())
    }
    assert list(rows) == ["classical", "dynamic"]
    splits = [json.loads((output / name / "split.json").read_text()) for name in rows]
    assert splits[0] == splits[1]
    for name, row in rows.items():
        assert checkpoint.read_card(str(output / name / "best")).training_patients == tuple(
            splits[0]["train"]
        )
        (epoch,) = csv.DictReader((output / name / "history.csv").read_text().splitlines())
        assert float(row["training_seconds"]) == float(epoch["seconds"])
        # The slices' own size is the training's, and so are the patients.
        assert float(row["dice"]) == pytest.approx(float(epoch["dice"]), rel=1e-3, abs=1e-6)
        assert float(row["patient_dice"]) == pytest.approx(
            float(epoch["patient_dice"]), rel=1e-3, abs=1e-6
        )


def test_without_a_patient_that_is_new_to_all_models_nothing_is_compared(
    phantom_archive: str, tmp_path: Path
) -> None:
    patients = tuple(sorted(set(Archive(phantom_archive).index()["patient_id"].to_pylist())))
    folders = [standin.save(str(tmp_path / name), SIZE, patients) for name in ("a", "b")]
    flags = [
        "--archive",
        phantom_archive,
        "--output",
        str(tmp_path / "out"),
        "--checkpoints",
        f"[{folders[0]}, {folders[1]}]",
    ]
    with pytest.raises(ArchiveError, match="every annotated patient was seen in the training"):
        compare.main([*flags, "--tracking", "none"])


def test_a_checkpoint_that_broke_is_named_without_a_traceback(
    phantom_archive: str, tmp_path: Path
) -> None:
    checkpoint.save(
        str(tmp_path / "model"), standin.flair_threshold_model(), standin.card(SIZE, ())
    )
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    flags = ["--archive", phantom_archive, "--output", str(tmp_path / "out"), "--tracking", "none"]
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its SHA-256 is") as caught:
        compare.main([*flags, "--checkpoints", f"[{tmp_path}/model, {tmp_path}/model]"])
    assert "Traceback" not in str(caught.value)


def test_models_are_named_by_what_tells_their_folders_apart() -> None:
    assert _names(["s3://a/one", "s3://a/two"]) == ["one", "two"]
    assert _names(["/runs/one/best", "/runs/two/best"]) == ["one/best", "two/best"]
