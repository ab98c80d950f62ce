"""The report before a segmentation; no model is loaded, Ray is not started."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import segment
from segmodel.archive import reader, slice_file
from segmodel.archive import writer as archive_writer
from segmodel.archive.reader import Archive
from segmodel.core.errors import ArchiveError, CheckpointError, ConfigError, LeaseError
from segmodel.runs import run_file, run_folder
from segmodel.runtime import ray_cluster
from segmodel.segmentation import preflight
from segmodel.segmentation.archive_facts import count_facts
from segmodel.segmentation.driver import prepare
from segmodel.settings.segment import SegmentConfig
from segmodel.storage.folder_lock import Lease
from tests.support import standin
from tests.support.scans import flip_page, scans, truncate, write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered_ingests: None) -> Path:
    """An archive of two files, A with 2 slices and B with 3 of unknown spacing, and a model."""
    monkeypatch.setattr(archive_writer, "FILE_SLICES", 1)
    monkeypatch.setattr(slice_file, "ROW_GROUP_SLICES", 1)
    write(tmp_path / "archive", scans("A", 2), scans("B", 3, spacing=None))
    standin.save(str(tmp_path / "model"), 32)
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    where = [
        f"--{name}={folder / place}"
        for name, place in (("archive", "archive"), ("checkpoint", "model"), ("output", "run"))
    ]
    return [*where, "--tracking=none", "--dry-run", *more]


def dry_run(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, str]:
    """Lines of the report by their subject."""
    assert segment.main(arguments(folder, *more)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop() == "dry run: nothing was written"
    return {line[:10].strip(): line[10:] for line in lines}


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = dry_run(folder, capsys)
    written, free = report.pop("writes").split("; ")
    assert re.fullmatch(r"at most \d+ kB", written)
    assert free.endswith(" free")
    assert report == {
        "archive": "5 slices, 2 patients, 2 series, 2 files",
        "sizes": "4x4 (5 slices)",
        "channels": "pre-contrast, FLAIR, post-contrast, as in training",
        "spacing": "unknown for 3 slices: volumes of their patients will be empty",
        "shards": "0 done, 2 to do: 5 slices",
        "time": "known after the first shards",
    }
    assert not (folder / "run").exists()


def test_damage_is_counted_before_anything_starts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_page(folder / "archive/slices-000000000001-00000.parquet", 1, "slice_id")
    assert dry_run(folder, capsys)["damaged"] == "1 slices to quarantine: their ids cannot be read"
    truncate(folder / "archive/slices-000000000001-00001.parquet")
    shutil.copy(
        folder / "archive/slices-000000000001-00000.parquet", folder / "archive/part-00007.parquet"
    )
    segment.main(arguments(folder))
    printed = capsys.readouterr().out
    assert "damaged   3 slices to quarantine: " in printed
    assert "slices-000000000001-00001.parquet: not a readable Parquet file" in printed
    assert "ignored   not named in archive.json: part-00007.parquet" in printed
    assert "archive   5 slices, 1 patients" in printed


def test_the_time_follows_from_the_speed_of_the_last_call(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = Archive(str(folder / "archive"))
    ready = prepare(
        SegmentConfig(
            archive=archive.uri, checkpoint=str(folder / "model"), output=str(folder / "run")
        )
    )
    run_file.write(str(folder / "run"), replace(ready.run, slices_per_second=0.05))
    assert (
        dry_run(folder, capsys)["time"] == "about 2 min, at 0.05 slices/s as in the last call"
    )  # 5 / 0.05 = 100 s


def test_before_the_first_shard_the_masks_are_bounded_by_their_bits(folder: Path) -> None:
    index = Archive(str(folder / "archive")).index()
    facts = count_facts(index, slices=6)
    png = (
        8 + 25 + 12 + 12 + 6 + 4 * (1 + 1)
    )  # four rows of four bits, one byte, and the byte of the filter
    assert facts.most_bytes == 5 * (png + 16) + index.nbytes
    assert facts.unreadable == 1


def test_a_disk_that_is_too_small_is_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(preflight, "free_bytes", lambda output: 100)
    assert dry_run(folder, capsys)["warning"] == "the masks may not fit on that disk"


def test_free_space_is_that_of_the_nearest_folder_and_unknown_on_s3(tmp_path: Path) -> None:
    assert preflight.free_bytes(str(tmp_path / "not" / "yet")) == pytest.approx(
        shutil.disk_usage(tmp_path).free, rel=0.1
    )
    assert preflight.free_bytes("memory://run") is None


def test_the_disk_of_a_folder_given_as_a_uri_is_that_folder_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[Path] = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: looked_at.append(path) or usage)
    assert preflight.free_bytes(f"file://{tmp_path}/run") == usage.free
    assert looked_at == [tmp_path]


def refused(folder: Path, error: type[Exception], match: str, *more: str) -> None:
    with pytest.raises(error, match=match):
        segment.main(arguments(folder, *more))
    assert not (folder / "run" / "lease.json").exists()


def test_slice_ids_that_come_twice_are_refused(folder: Path) -> None:
    manifest = json.loads((folder / "archive/archive.json").read_text())
    shutil.copy(
        folder / "archive/slices-000000000001-00000.parquet", folder / "archive/part-00002.parquet"
    )
    manifest = {**manifest, "slices": 7, "files": {**manifest["files"], "part-00002.parquet": 2}}
    (folder / "archive/archive.json").write_text(json.dumps(manifest))
    refused(folder, ArchiveError, "2 slice ids occur twice")


def test_weights_that_were_altered_are_refused_before_ray_starts(folder: Path) -> None:
    path = folder / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(folder, CheckpointError, "its SHA-256 is")


def test_another_number_of_channels_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "archive/archive.json").read_text())
    (folder / "archive/archive.json").write_text(json.dumps({**manifest, "channels": ["FLAIR"]}))
    refused(folder, ArchiveError, "1 channels")


def test_a_second_job_in_the_same_folder_is_refused_before_ray_starts(folder: Path) -> None:
    other = Lease(str(folder / "run"))
    other.holder = replace(other.holder, host="node-7", pid=4321)
    other.acquire()
    assert segment.main(arguments(folder)) == 0  # a dry run writes nothing, so it may
    with pytest.raises(LeaseError, match="in use by host node-7, process 4321"):
        segment.main([argument for argument in arguments(folder) if argument != "--dry-run"])
    assert not (folder / "run/run.json").exists()


def test_masks_of_unknown_origin_are_refused(folder: Path) -> None:
    (folder / "run/masks").mkdir(parents=True)
    (folder / "run/masks/a.parquet").write_bytes(b"")
    refused(folder, ConfigError, r"holds masks but no run\.json")


def test_series_of_two_patients_that_share_a_name_are_two(folder: Path) -> None:
    """A writer may number the series of each patient from 1."""
    index = Archive(str(folder / "archive")).index()
    place = index.column_names.index("series_id")
    same = index.set_column(place, "series_id", pa.array(["1"] * index.num_rows))
    assert count_facts(same, 5).series == 2


def test_a_request_looks_at_the_archive_and_for_its_work_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def counted(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def look(*arguments: object, **more: object) -> object:
            looks.append(name)
            return original(*arguments, **more)

        monkeypatch.setattr(owner, name, look)

    class Stop(Exception):  # noqa: N818 - no error of ours
        pass

    def no_ray() -> None:
        raise Stop

    counted(reader, "read_info")
    counted(run_folder, "find_work")
    monkeypatch.setattr(ray_cluster, "connect", no_ray)
    with pytest.raises(Stop):
        segment.main([argument for argument in arguments(folder) if argument != "--dry-run"])
    assert looks == ["read_info", "find_work"]
    assert not (folder / "run/run.json").exists()
