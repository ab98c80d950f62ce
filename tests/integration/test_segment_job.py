"""jobs.segment end to end on a real local Ray, with a model of known answers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import ray

from jobs import segment, summarize
from segmodel.analysis import series_shapes, volumes
from segmodel.core.errors import ArchiveError, ConfigError, FingerprintError, SegmentationError
from segmodel.segmentation import driver as segmentation_driver
from tests.conftest import PATIENTS, SIZE, SLICES
from tests.support import deadly, standin
from tests.support.phantom_segmentation import assert_equals_truth, command, truth

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return standin.save(
        str(tmp_path_factory.mktemp("model") / "best"), SIZE, training_patients=("PHANTOM_0002",)
    )


@pytest.fixture(scope="module")
def finished(
    phantom_archive: str, checkpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that is done; tests that change it take a copy."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert segment.main(command(phantom_archive, checkpoint, output)) == 0
    return output


def test_masks_and_volumes_equal_the_phantoms_truth_to_the_voxel(
    phantom_archive: str, finished: Path
) -> None:
    output = finished
    assert_equals_truth(output, phantom_archive)

    expected = truth(phantom_archive)
    voxel_mm3 = (160 / SLICES) * (240 / SIZE) ** 2
    table = pyarrow.csv.read_csv(output / "volumes.csv").to_pylist()
    exact = pq.read_table(output / "volumes.parquet")["tumor_volume_ml"].to_pylist()
    assert len(exact) == len(table) == PATIENTS
    for row, exact_ml in zip(table, exact, strict=True):
        of_patient = [
            mask for slice_id, mask in expected.items() if slice_id.startswith(row["patient_id"])
        ]
        voxels = sum(int(mask.sum()) for mask in of_patient)
        assert row["tumor_voxels"] == voxels
        assert row["slices_with_tumor"] == sum(bool(mask.any()) for mask in of_patient)
        assert exact_ml == pytest.approx(voxels * voxel_mm3 / 1000, rel=1e-5)
        assert row["tumor_volume_ml"] == pytest.approx(exact_ml, rel=1e-3)
        assert (row["slices"], row["slices_missing"], row["slices_duplicated"]) == (SLICES, 0, 0)
        seen = "train" if row["patient_id"] == "PHANTOM_0002" else "no"
        assert row["seen_in_training"] == seen
    assert {row["patient_id"]: row["tumor_voxels"] for row in table}[
        "PHANTOM_0004"
    ] == 0  # the healthy one

    page = (output / "report.html").read_text()
    assert page.count("data:image/webp") >= 4  # of the four patients with tumor

    run = json.loads((output / "run.json").read_text())
    assert run["counts"]["segmented"] == PATIENTS * SLICES
    assert run["started"] <= run["finished"]


def test_a_second_run_does_nothing_and_a_deleted_shard_is_redone_alone(
    phantom_archive: str,
    checkpoint: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "run"))
    arguments = command(phantom_archive, checkpoint, output, "--workers", "1:2")
    written = {path: path.stat().st_mtime_ns for path in (output / "masks").glob("*.parquet")}
    assert len(written) == 7  # 400 slices in row groups of 64

    assert segment.main(arguments) == 0
    assert "nothing to do: all 7 shards are there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in written} == written

    run = json.loads((output / "run.json").read_text())
    # As a kill between volumes.csv and the last run.json leaves it.
    (output / "run.json").write_text(json.dumps({**run, "counts": None, "finished": None}))
    assert segment.main(arguments) == 0
    assert json.loads((output / "run.json").read_text())["counts"] == run["counts"]

    deleted = sorted(written)[3]
    deleted.unlink()
    (output / "masks" / ".half-written.parquet.tmp").write_bytes(b"left by a killed worker")
    assert segment.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "1 of 7 shards done now" in printed
    assert (
        f"{PATIENTS * SLICES} of {PATIENTS * SLICES} slices segmented, 0 in quarantine" in printed
    )
    changed = [path for path in written if path.stat().st_mtime_ns != written[path]]
    assert changed == [deleted]
    assert_equals_truth(output, phantom_archive)


def test_masks_that_the_driver_does_not_see_are_not_taken_for_done(
    phantom_archive: str, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation_driver, "SegmentShards", deadly.ElsewhereSegmentShards)
    with pytest.raises(
        SegmentationError, match=r"7 shards were done, but .* do all machines share that folder"
    ):
        segment.main(command(phantom_archive, checkpoint, tmp_path / "run"))
    assert json.loads((tmp_path / "run/run.json").read_text())["finished"] is None
    assert not (tmp_path / "run/volumes.csv").exists()


def test_a_request_for_a_gpu_that_is_not_there_changes_nothing(
    phantom_archive: str,
    checkpoint: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    output = Path(shutil.copytree(finished, tmp_path / "run"))
    next((output / "masks").glob("*.parquet")).unlink()  # so that there is something to do
    before = (output / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="no GPU that Ray can see"):
        segment.main(command(phantom_archive, checkpoint, output, "--gpu"))
    assert (output / "run.json").read_bytes() == before


def test_another_threshold_model_or_shard_size_is_refused_and_named(
    phantom_archive: str, checkpoint: str, finished: Path, tmp_path: Path
) -> None:
    output = finished
    before = sorted(path.stat().st_mtime_ns for path in (output / "masks").iterdir())
    with pytest.raises(FingerprintError, match=r"threshold was 0\.5, is now 0\.7"):
        segment.main(command(phantom_archive, checkpoint, output, "--threshold", "0.7"))
    other = standin.save(str(tmp_path / "other"), 2 * SIZE)
    with pytest.raises(FingerprintError, match="model_settings_sha256 was"):
        segment.main(command(phantom_archive, other, output))
    recorded = json.loads((output / "run.json").read_text())["fingerprint"]["precision"]
    other_precision = {"fp32": "bf16", "bf16": "fp32"}[recorded]
    with pytest.raises(FingerprintError, match=f"precision was {recorded}, is now"):
        segment.main(command(phantom_archive, checkpoint, output, "--precision", other_precision))
    with pytest.raises(FingerprintError, match="test_time_augmentation was None, is now flips"):
        segment.main(command(phantom_archive, checkpoint, output, "--tta"))
    with pytest.raises(FingerprintError, match="shard_slices was 64, is now 128"):
        segment.main([*command(phantom_archive, checkpoint, output), "--shard-slices", "128"])
    assert sorted(path.stat().st_mtime_ns for path in (output / "masks").iterdir()) == before


def test_postprocessing_is_tried_without_segmenting_again(
    phantom_archive: str, checkpoint: str, finished: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "run"))
    masks_before = sorted(path.stat().st_mtime_ns for path in (output / "masks").iterdir())
    tumor = pyarrow.csv.read_csv(output / "volumes.csv")["tumor_voxels"].to_pylist()
    large = ["--min-volume-ml", "1000"]
    assert summarize.main(["--segmentation", str(output), *large, "--tracking", "none"]) == 0
    without = pyarrow.csv.read_csv(output / "volumes.csv")
    assert without["tumor_voxels"].to_pylist() == [0] * PATIENTS
    assert without["seen_in_training"].to_pylist()[1] == "train"
    assert segment.main(command(phantom_archive, checkpoint, output)) == 0  # without it again
    again = pyarrow.csv.read_csv(output / "volumes.csv")
    assert again["tumor_voxels"].to_pylist() == tumor
    assert sorted(p.stat().st_mtime_ns for p in (output / "masks").iterdir()) == masks_before


def test_series_that_are_measured_on_ray_come_out_as_in_the_driver(
    phantom_archive: str, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    monkeypatch.setattr(volumes, "RAY_FILES", 1)
    monkeypatch.setattr(
        series_shapes, "CHUNK_FILES", 2
    )  # a chunk for each of the four series with tumor
    assert (
        segment.main(command(phantom_archive, checkpoint, output, "--min-volume-ml", "1000")) == 0
    )
    on_ray = pq.read_table(output / "series.parquet")
    assert on_ray["tumor_voxels"].to_pylist() == [0] * PATIENTS  # no tumor is that large
    final = [
        row
        for path in (output / "postprocessed").iterdir()
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(final) == (PATIENTS - 1) * SLICES  # the healthy one did not change
    assert {row["tumor_pixels"] for row in final} == {0}
    assert_equals_truth(output, phantom_archive)  # masks/ is what the model said

    plain = volumes.summarise(str(output), {}.get)
    monkeypatch.setattr(volumes, "RAY_FILES", 1000)
    assert volumes.summarise(str(output), {}.get).equals(plain)
    assert [voxels > 0 for voxels in plain["largest_component_voxels"].to_pylist()] == [
        True,
        True,
        True,
        False,
        True,
    ]


def test_scans_with_another_number_of_channels_are_refused_before_anything_starts(
    phantom_archive: str, checkpoint: str, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(phantom_archive, archive)
    manifest = json.loads((archive / "archive.json").read_text())
    (archive / "archive.json").write_text(json.dumps({**manifest, "channels": ["FLAIR"]}))
    with pytest.raises(ArchiveError, match="1 channels"):
        segment.main(command(str(archive), checkpoint, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_after_kill_9_the_same_command_finishes_with_every_slice_exactly_once(
    phantom_archive: str, checkpoint: str, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    arguments = command(phantom_archive, checkpoint, output)
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.segment", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not list((output / "masks").glob("*.parquet")):
        assert job.poll() is None, "the job ended before it published anything"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert not (output / "volumes.csv").exists()

    assert segment.main(arguments) == 0
    assert_equals_truth(output, phantom_archive)
    assert len(pyarrow.csv.read_csv(output / "volumes.csv")) == PATIENTS
