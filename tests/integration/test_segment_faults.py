"""jobs.segment on a real local Ray, with workers that die."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs import segment
from segmodel.archive import slice_file
from segmodel.archive.reader import Archive
from segmodel.core.errors import SegmentationError
from segmodel.models.checkpoint import read_card
from segmodel.runs.run_file import Fingerprint
from segmodel.segmentation import driver as segmentation_driver
from segmodel.segmentation.actors import Actors
from segmodel.segmentation.crash_isolation import CAREFUL_FROM, DEATHS, CrashRecord, Step
from segmodel.segmentation.worker import SegmentShards
from tests.conftest import PATIENTS, SIZE, SLICES
from tests.support import deadly, killing, nodes, scans, standin
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("local_ray")


def flags_of(archive: Path | str, checkpoint: Path | str, output: Path | str) -> list[str]:
    """Of a segmentation without a tracker."""
    places = {"archive": archive, "checkpoint": checkpoint, "output": output}
    return [*(f"--{name}={place}" for name, place in places.items()), "--tracking=none"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return standin.save(str(tmp_path_factory.mktemp("model") / "best"), SIZE)


def marked(slices: pa.Table, marks: dict[int, int]) -> pa.Table:
    """The same slices, but for the first pixel of some rows."""
    pixels = slices["pixels"].to_pylist()
    for row, mark in marks.items():
        pixels[row] = bytes([mark]) + pixels[row][1:]
    column = slices.schema.get_field_index("pixels")
    return slices.set_column(column, slices.schema.field(column), pa.array(pixels, pa.binary()))


def test_a_slice_that_kills_workers_and_a_too_large_one_are_quarantined_alone(
    phantom_archive: str,
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(slice_file, "ROW_GROUP_SLICES", 2)
    monkeypatch.setattr(segmentation_driver, "SegmentShards", deadly.DeadlySegmentShards)
    archive, output = tmp_path / "archive", tmp_path / "run"
    slices = pq.read_table(scans.files(phantom_archive)[0]).slice(0, 24)
    scans.write(archive, marked(slices, {9: deadly.MARK, 20: deadly.TOO_LARGE}))
    flags = flags_of(archive, checkpoint, output)
    assert segment.main([*flags, "--shard-slices", "12", "--max-quarantined", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "22 of 24 slices segmented, 2 in quarantine" in printed
    assert (
        f"shard {scans.files(archive)[0].stem}-rows-00000-00006: its worker died; attempt 2"
        in printed
    )
    assert "24 of 24 slices" in printed
    rows = {row["slice_id"]: row for row in pq.read_table(output / "quarantine").to_pylist()}
    assert {slice_id: row["stage"] for slice_id, row in rows.items()} == {
        "PHANTOM_0001_10": "crash",
        "PHANTOM_0001_21": "predict",
    }
    assert f"killed {DEATHS} workers" in rows["PHANTOM_0001_10"]["reason"]
    assert pq.read_table(output / "masks").num_rows == 22


def contents(run: Path) -> dict[str, object]:
    """All that a run came to, whatever order its shards were done in."""
    tables = {
        folder: pq.read_table(run / folder).sort_by("slice_id").to_pylist()
        for folder in ("masks", "quarantine")
    }
    counts = json.loads((run / "run.json").read_text())["counts"]
    return (
        tables
        | {name: (run / name).read_bytes() for name in ("volumes.csv", "series.csv")}
        | {"counts": counts}
    )


def test_after_sixty_kills_masks_and_volumes_are_those_of_undisturbed_runs(
    phantom_archive: str, checkpoint: str, tmp_path: Path
) -> None:
    """At seeded moments and steps of writing; every process is killed but the last of each run."""
    slices = pq.read_table(scans.files(phantom_archive)[0])
    pixels = slices["pixels"].to_pylist()
    pixels[70] = bytes(len(pixels[70]))  # for quarantine/
    column = slices.schema.get_field_index("pixels")
    archive = tmp_path / "archive"
    scans.write(
        archive,
        slices.set_column(column, slices.schema.field(column), pa.array(pixels, pa.binary())),
    )
    command = [
        sys.executable,
        "-m",
        "tests.support.killing",
        str(archive),
        checkpoint,
        str(tmp_path),
        "7",
        "60",
    ]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["killed"] >= 60
    assert result["failed"] >= 5  # of a disk that was full for a moment
    undisturbed = contents(tmp_path / "undisturbed")
    assert undisturbed["counts"] == {
        "slices": 400,
        "segmented": 399,
        "quarantined": 0,
        "blank": 1,
        "patients": PATIENTS,
        "shards": 7,
    }
    for number in range(result["runs"]):
        assert contents(tmp_path / str(number)) == undisturbed, f"run {number}"
    deaths = result["killed"] + result["failed"]
    assert result["inferred"] <= result["runs"] * PATIENTS * SLICES + deaths * killing.SHARD_SLICES


@pytest.fixture
def second_node() -> Iterator[psutil.Process]:
    with nodes.second_node() as raylet:
        yield raylet


def test_a_segmentation_survives_the_death_of_a_node(
    phantom_archive: str,
    checkpoint: str,
    second_node: psutil.Process,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segmentation_driver, "SegmentShards", deadly.SlowSegmentShards)
    output = tmp_path / "run"

    def workers_there() -> list[psutil.Process]:
        return [
            child for child in second_node.children() if "MapWorker" in "".join(child.cmdline())
        ]

    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: len(list((output / "masks").glob("*.parquet"))) >= 1, "a shard")
        wait_for(lambda: len(workers_there()) == 1, "a worker on the second node")
        killed.extend(worker.pid for worker in workers_there())
        second_node.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    flags = flags_of(phantom_archive, checkpoint, output)
    assert (
        segment.main([*flags, "--shard-slices", "64", "--batch-size", "16", "--workers", "3"]) == 0
    )
    killer.join()
    assert len(killed) == 1
    assert sorted(pq.read_table(output / "masks")["slice_id"].to_pylist()) == sorted(
        pq.read_table(scans.files(phantom_archive)[0])["slice_id"].to_pylist()
    )
    assert json.loads((output / "run.json").read_text())["counts"]["segmented"] == PATIENTS * SLICES


def test_a_pool_of_actors_grows_from_the_least_to_the_most(
    phantom_archive: str, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation_driver, "SegmentShards", deadly.SlowSegmentShards)

    def workers() -> int:
        found = 0
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                found += "MapWorker(" in "".join(child.cmdline())
        return found

    flags = flags_of(phantom_archive, checkpoint, tmp_path / "run")
    with ThreadPoolExecutor(1) as pool:
        two = pool.submit(wait_for, lambda: workers() == 2, "a second actor", 60)
        assert (
            segment.main([*flags, "--shard-slices", "64", "--batch-size", "12", "--workers", "1:2"])
            == 0
        )
        two.result()


def worker(archive: str, checkpoint: str, output: Path, record: CrashRecord) -> SegmentShards:
    """One in this process."""
    return SegmentShards(
        archive=archive,
        checkpoint_folder=checkpoint,
        output=str(output),
        fingerprint=Fingerprint(
            weights_sha256=read_card(checkpoint).weights_sha256,
            model_settings_sha256="",
            threshold=0.5,
            precision="fp32",
            archive_id="",
            shard_slices=128,
            test_time_augmentation=None,
            code_version="",
            code_sha256="",
        ),
        actors=Actors(use_gpu=False, fewest=1, most=1, cpus=1, batch_size=16, compiled=False),
        max_starts=1,
        queue=SimpleNamespace(put=lambda message: None),
        crashes=record,
    )  # type: ignore[arg-type]


def test_a_file_that_breaks_after_two_deaths_leaves_all_its_slices_in_quarantine(
    phantom_archive: str, checkpoint: str, tmp_path: Path
) -> None:
    archive, output = tmp_path / "archive", tmp_path / "run"
    scans.write(archive, pq.read_table(scans.files(phantom_archive)[0]))
    (shard, *_) = Archive(str(archive)).shards(128)
    scans.truncate(archive / shard.file)
    record = CrashRecord()
    for _ in range(CAREFUL_FROM - 1):
        record.begin(shard.name)
    worker(str(archive), checkpoint, output, record)({"shard": [shard.to_json()]})  # type: ignore[dict-item]
    rows = pq.read_table(output / "quarantine").to_pylist()
    assert [row["stage"] for row in rows] == ["open"] * 128
    assert pq.read_table(output / "masks").num_rows == 0


def test_a_row_group_whose_reading_kills_workers_is_named_by_its_patients(
    phantom_archive: str, checkpoint: str, tmp_path: Path
) -> None:
    (shard, *_) = Archive(phantom_archive).shards(64)
    record = CrashRecord()
    for _ in range(CAREFUL_FROM):
        record.begin(shard.name)
    for _ in range(DEATHS):
        record.take(shard.name, Step(0))
        record.begin(shard.name)
    worker(phantom_archive, checkpoint, tmp_path, record)({"shard": [shard.to_json()]})  # type: ignore[dict-item]
    rows = pq.read_table(tmp_path / "quarantine").to_pylist()
    assert [(row["stage"], row["slice_id"]) for row in rows] == [("crash", None)] * 64
    assert f"row group 0 killed {DEATHS} workers while it was read" in rows[0]["reason"]
    assert rows[0]["patient_id"] == shard.first_patient
    assert rows[-1]["patient_id"] == shard.last_patient


def test_slices_with_non_finite_probabilities_are_quarantined(
    phantom_archive: str, checkpoint: str, tmp_path: Path
) -> None:
    (shard, *_) = Archive(phantom_archive).shards(64)
    one = worker(phantom_archive, checkpoint, tmp_path, CrashRecord())
    network = one.predictor.model

    def overflowing(x_nchw: torch.Tensor) -> torch.Tensor:
        logits_nchw = network(x_nchw)
        logits_nchw[0, :, 3, 3] = (
            torch.inf
        )  # of a batch's first slice; the difference of its two classes is no number
        return logits_nchw

    one.predictor.model = overflowing  # type: ignore[assignment]
    one({"shard": [shard.to_json()]})  # type: ignore[dict-item]
    rows = pq.read_table(tmp_path / "quarantine").to_pylist()
    assert [(row["slice_index"], row["stage"]) for row in rows] == [
        (1 + 16 * n, "predict") for n in range(4)
    ]
    assert all("output is NaN or infinite" in row["reason"] for row in rows)
    assert pq.read_table(tmp_path / "masks").num_rows == 60


def test_a_worker_whose_gpu_fails_ends_and_another_does_its_shard(
    phantom_archive: str,
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(segmentation_driver, "SegmentShards", deadly.BrokenGpuSegmentShards)
    flags = flags_of(phantom_archive, checkpoint, tmp_path / "run")
    assert segment.main([*flags, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"a GPU of {socket.gethostname()} failed; its worker ends and another begins" in printed
    assert "CUDA error: uncorrectable ECC error encountered" in printed
    assert (
        f"{PATIENTS * SLICES} of {PATIENTS * SLICES} slices segmented, 0 in quarantine" in printed
    )


@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        (deadly.StillbornSegmentShards, "3 workers were started and not one shard was done"),
        (deadly.BrokenSegmentShards, "the network is broken"),
        (deadly.LateSegmentShards, "holds another model than when this run began"),
    ],
)
def test_workers_that_never_finish_anything_end_the_job_with_the_reason(
    phantom_archive: str,
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    worker: type[SegmentShards],
    reason: str,
) -> None:
    monkeypatch.setattr(segmentation_driver, "SegmentShards", worker)
    monkeypatch.setattr(segmentation_driver, "MAX_DEATHS", 2)
    flags = flags_of(phantom_archive, checkpoint, tmp_path / "run")
    with pytest.raises(SegmentationError, match=f"{reason}.*give the same command again"):
        segment.main([*flags, "--workers", "1"])


def test_an_archive_that_was_replaced_meanwhile_ends_the_job_and_is_named(
    phantom_archive: str, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation_driver, "SegmentShards", deadly.ReplacedSegmentShards)
    archive, output = tmp_path / "archive", tmp_path / "run"
    shutil.copytree(phantom_archive, archive)
    flags = flags_of(archive, checkpoint, output)
    with pytest.raises(
        SegmentationError,
        match=r"was replaced while it was being segmented .*now: another.*another --output",
    ):
        segment.main([*flags, "--workers", "1"])
    assert json.loads((output / "run.json").read_text())["finished"] is None
    assert not (output / "volumes.csv").exists()
