"""Archives that grow, and archives with damaged files."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from segmodel.archive import slice_file
from segmodel.archive import writer as archive_writer
from segmodel.archive.reader import Archive, Shard, read_shard
from segmodel.core.errors import ArchiveError
from tests.support.scans import flip_page, scans, truncate, write

FIRST, SECOND, THIRD = (f"slices-000000000001-{number:05d}.parquet" for number in range(3))
ADDED = "slices-000000000002-00000.parquet"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered_ingests: None) -> Path:
    """Three files: A with 2 slices, B with 3, C with 4."""
    monkeypatch.setattr(archive_writer, "FILE_SLICES", 1)
    monkeypatch.setattr(slice_file, "ROW_GROUP_SLICES", 1)
    write(tmp_path, scans("A", 2), scans("B", 3), scans("C", 4))
    return tmp_path


def without_files(folder: Path) -> None:
    """Make archive.json one of an earlier version."""
    manifest = json.loads((folder / "archive.json").read_text())
    del manifest["files"]
    (folder / "archive.json").write_text(json.dumps(manifest))


def test_the_manifest_counts_the_slices_of_each_file(folder: Path) -> None:
    assert json.loads((folder / "archive.json").read_text())["files"] == {
        FIRST: 2,
        SECOND: 3,
        THIRD: 4,
    }


def test_added_patients_are_new_files_of_the_same_archive(folder: Path) -> None:
    before = Archive(str(folder))
    old_bytes = (folder / FIRST).read_bytes()
    info = write(folder, scans("AA", 5), add=True)
    archive = Archive(str(folder))
    assert info == archive.info
    assert (info.patients, info.slices, info.archive_id) == (4, 14, before.info.archive_id)
    assert info.files == {FIRST: 2, SECOND: 3, THIRD: 4, ADDED: 5}
    assert (folder / FIRST).read_bytes() == old_bytes
    assert archive.shards(100)[:3] == before.shards(100)
    assert archive.shards(100)[3] == Shard(ADDED, 0, 5, 5, "AA", "AA")


def test_scans_with_other_channels_are_refused(folder: Path) -> None:
    with pytest.raises(
        ArchiveError,
        match=r"its channels: pre-contrast, FLAIR, post-contrast; those of the new .*: T1, T2, PD",
    ):
        write(folder, scans("D", 1), add=True, channels=("T1", "T2", "PD"))


def test_without_an_archive_there_is_nothing_to_add_to(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no archive"):
        write(tmp_path, scans("A", 1), add=True)


def test_an_archive_of_an_earlier_version_is_read_and_added_to(folder: Path) -> None:
    without_files(folder)
    assert Archive(str(folder)).info.files is None
    assert Archive(str(folder)).index().num_rows == 9
    assert write(folder, scans("D", 1), add=True).files == {
        FIRST: 2,
        SECOND: 3,
        THIRD: 4,
        ADDED: 1,
    }


def test_a_damaged_file_is_an_error_for_a_training(folder: Path) -> None:
    truncate(folder / SECOND)
    with pytest.raises(ArchiveError, match=f"{SECOND}: not a readable Parquet file"):
        Archive(str(folder))


def wrong_columns(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["pixels"]), path)


def other_slices(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "not a readable Parquet file"),
        (lambda path: path.write_bytes(b""), "not a readable Parquet file"),
        (lambda path: path.write_bytes(b"<html>404</html>"), "not a readable Parquet file"),
        (Path.unlink, "there is no such file"),
        (wrong_columns, "column 'pixels' is missing"),
        (other_slices, "archive.json counts 3 slices in it, it holds 2"),
    ],
)
def test_a_damaged_file_is_set_aside_with_its_slices_and_the_others_are_planned(
    folder: Path, damage, reason: str
) -> None:
    damage(folder / SECOND)
    archive = Archive(str(folder), skip_damaged=True)
    (damaged,) = archive.damaged
    assert (damaged.name, damaged.slices) == (SECOND, 3)
    assert f"{SECOND}: {reason}" in damaged.reason
    assert archive.info.slices == 9
    assert [shard.file for shard in archive.shards(100)] == [FIRST, THIRD]
    assert archive.index()["patient_id"].unique().to_pylist() == ["A", "C"]


def test_a_version_1_archive_tells_the_slices_of_damaged_files_in_sum(
    folder: Path,
) -> None:
    without_files(folder)
    truncate(folder / FIRST)
    truncate(folder / THIRD)
    damaged = Archive(str(folder), skip_damaged=True).damaged
    assert [(file.name, file.slices) for file in damaged] == [(FIRST, 6), (THIRD, 0)]
    assert FIRST in damaged[0].reason
    assert THIRD in damaged[0].reason


def test_an_archive_without_a_readable_file_is_refused(folder: Path) -> None:
    for name in (FIRST, SECOND, THIRD):
        truncate(folder / name)
    with pytest.raises(ArchiveError, match="none of its 3 files can be read"):
        Archive(str(folder), skip_damaged=True)


def test_a_slice_id_in_two_files_is_refused_with_both_names(folder: Path) -> None:
    table = pq.read_table(folder / THIRD)
    ids = ["A_2", *table["slice_id"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, table.schema.field("slice_id"), [ids]), folder / THIRD)
    with pytest.raises(
        ArchiveError,
        match=f"1 slice ids occur twice; the first is 'A_2', in {FIRST} and {THIRD}",
    ):
        Archive(str(folder), skip_damaged=True).index()


def test_ids_that_cannot_be_read_are_an_error_unless_damage_is_to_be_skipped(folder: Path) -> None:
    flip_page(folder / SECOND, 1, "slice_id")
    with pytest.raises(ArchiveError, match=f"{SECOND}: row group 1: cannot be read"):
        Archive(str(folder)).index()
    assert Archive(str(folder), skip_damaged=True).index().num_rows == 8


@pytest.mark.parametrize("column", ["slice_id", "pixels"])
def test_what_is_damaged_is_named_to_a_training(folder: Path, column: str) -> None:
    flip_page(folder / SECOND, 2, column)
    archive = Archive(str(folder))
    said = (
        rf"{folder}/{SECOND}: row group 2 cannot be read \(.*\); "
        "restore a good copy of the file, or ingest again"
    )
    with pytest.raises(ArchiveError, match=said):
        list(archive.read_columns([column]))
    with pytest.raises(ArchiveError, match=said):
        read_shard(str(folder), Shard(SECOND, 0, 3, 3))
