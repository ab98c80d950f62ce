"""What an ingest replaces, what it removes and what it leaves alone."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from segmodel.archive import slice_file
from segmodel.archive import writer as archive_writer
from segmodel.archive.reader import Archive
from segmodel.core import schema
from segmodel.core.errors import ArchiveError, LeaseLostError
from segmodel.core.source_files import SourceFiles
from tests.support.scans import open_writer, scans, shown, write

NO_REJECTS = schema.REJECTS.empty_table()


def overwrite(folder: Path, *patients: pa.Table) -> None:
    with open_writer(folder, overwrite=True) as writer:
        for slices in patients:
            writer.append(slices, NO_REJECTS)
        writer.close()


def series_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "series").iterdir())


def slice_ids(folder: Path) -> list[str]:
    return Archive(str(folder)).index()["slice_id"].to_pylist()


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file a patient."""
    monkeypatch.setattr(archive_writer, "FILE_SLICES", 1)
    monkeypatch.setattr(slice_file, "ROW_GROUP_SLICES", 1)


def test_two_ingests_never_write_the_same_file_name(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, scans("A", 1)).files for name in ("first", "second"))
    assert first is not None
    assert second is not None
    assert first.keys().isdisjoint(second)


def test_overwrite_leaves_nothing_of_the_old_archive(tmp_path: Path, small_files: None) -> None:
    rejects = pa.Table.from_pylist(
        [{"source_uri": "/x.tif", "patient_id": "A", "reason": "16-bit"}], schema=schema.REJECTS
    )
    with open_writer(tmp_path) as writer:
        writer.append(scans("A", 1), rejects)
        writer.append(scans("B", 1), NO_REJECTS)
        writer.close()
    assert len(shown(tmp_path)) == 4  # two files of slices, one of rejects, archive.json
    overwrite(tmp_path, scans("C", 1))
    (name,) = Archive(str(tmp_path)).files
    assert shown(tmp_path) == ["archive.json", name]
    assert series_files(tmp_path) == [name]
    assert slice_ids(tmp_path) == ["C_1"]


@pytest.mark.parametrize("ending", [InterruptedError, KeyboardInterrupt])
def test_an_overwrite_that_breaks_off_leaves_the_old_archive_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    monkeypatch.setattr(archive_writer, "FILE_SLICES", 2)
    write(tmp_path, scans("A", 2))
    before = shown(tmp_path)

    def break_off() -> None:
        with open_writer(tmp_path, overwrite=True) as writer:
            writer.append(scans("B", 2), NO_REJECTS)  # a file that is published
            writer.append(scans("C", 1), NO_REJECTS)  # and one that is begun
            assert len(shown(tmp_path)) == len(before) + 2
            raise ending

    with pytest.raises(ending):
        break_off()
    assert len(shown(tmp_path)) == len(before) + 1  # what is published is there to go on with
    assert slice_ids(tmp_path) == ["A_1", "A_2"]
    overwrite(tmp_path, scans("D", 1))
    (name,) = Archive(str(tmp_path)).files
    assert shown(tmp_path) == ["archive.json", name]


def test_while_an_overwrite_runs_the_old_archive_is_read(tmp_path: Path, small_files: None) -> None:
    write(tmp_path, scans("A", 1))
    with open_writer(tmp_path, overwrite=True) as writer:
        writer.append(scans("B", 1), NO_REJECTS)
        assert slice_ids(tmp_path) == ["A_1"]
        writer.close()
    assert slice_ids(tmp_path) == ["B_1"]


FOREIGN = (
    "table.parquet",
    "part-00000.parquet",
    "slices-2024.parquet",
    "notes.txt",
    "rejects/rejects.parquet",
    "more/slices-0123456789ab-00000.parquet",
)


@pytest.fixture
def with_foreign(tmp_path: Path) -> Path:
    for name in FOREIGN:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}: not ours")
    return tmp_path


def check_foreign(folder: Path) -> None:
    for name in FOREIGN:
        assert (folder / name).read_text() == f"{name}: not ours"


def test_a_folder_with_foreign_parquet_files_is_no_unfinished_archive(with_foreign: Path) -> None:
    with pytest.raises(ArchiveError, match="no archive"):
        Archive(str(with_foreign))
    write(with_foreign, scans("A", 1))
    assert slice_ids(with_foreign) == ["A_1"]
    check_foreign(with_foreign)


def test_overwrite_and_append_never_touch_foreign_files(with_foreign: Path) -> None:
    overwrite(with_foreign, scans("A", 1))
    overwrite(with_foreign, scans("B", 1))
    write(with_foreign, scans("C", 1), add=True)
    assert slice_ids(with_foreign) == ["B_1", "C_1"]
    check_foreign(with_foreign)


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"title": "my papers"}'])
def test_an_archive_json_of_another_program_is_refused_even_with_overwrite(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "archive.json").write_text(text)
    with pytest.raises(ArchiveError, match=r"archive\.json is not an archive's and is left alone"):
        overwrite(tmp_path, scans("A", 1))
    assert (tmp_path / "archive.json").read_text() == text


def test_an_archive_of_another_version_is_replaced_with_overwrite(tmp_path: Path) -> None:
    write(tmp_path, scans("A", 1))
    values = json.loads((tmp_path / "archive.json").read_text())
    (tmp_path / "archive.json").write_text(json.dumps({**values, "format_version": 99}))
    overwrite(tmp_path, scans("B", 1))
    assert slice_ids(tmp_path) == ["B_1"]
    assert len(shown(tmp_path)) == 2


def test_of_an_archive_that_names_no_files_overwrite_removes_those_with_its_names(
    tmp_path: Path,
) -> None:
    info = write(tmp_path, scans("A", 1))
    (name,) = info.files or {}
    (tmp_path / name).rename(tmp_path / "part-00000.parquet")
    (tmp_path / "mine.parquet").write_text("not ours")
    values = json.loads((tmp_path / "archive.json").read_text())
    del values["files"], values["reject_files"]
    (tmp_path / "archive.json").write_text(json.dumps(values))
    overwrite(tmp_path, scans("B", 1))
    assert (tmp_path / "mine.parquet").exists()
    assert not (tmp_path / "part-00000.parquet").exists()


def test_what_a_killed_ingest_left_is_no_archive_and_goes_with_the_next_one(
    tmp_path: Path,
) -> None:
    left = ("slices-0123456789ab-00000.parquet", "slices-0123456789ab-00001.parquet.unfinished")
    for name in left:
        (tmp_path / name).write_text("half")
    (tmp_path / "rejects").mkdir()
    (tmp_path / "rejects" / "rejects-0123456789ab.parquet").write_text("half")
    with pytest.raises(ArchiveError, match="an ingest that was not finished"):
        Archive(str(tmp_path))
    info = write(tmp_path, scans("A", 1))
    assert shown(tmp_path) == sorted(["archive.json", *(info.files or {})])


def test_an_addition_that_breaks_off_leaves_the_archive_and_can_be_repeated(
    tmp_path: Path,
) -> None:
    before = write(tmp_path, scans("A", 1))

    def break_off() -> None:
        with open_writer(tmp_path, add=True) as writer:
            writer.append(scans("D", 2), NO_REJECTS)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        break_off()
    assert Archive(str(tmp_path)).info == before
    write(tmp_path, scans("D", 2), add=True)
    assert slice_ids(tmp_path) == ["A_1", "D_1", "D_2"]


class LostLeaseError(Exception):
    pass


def test_no_file_is_published_once_the_lease_is_lost(tmp_path: Path, small_files: None) -> None:
    def lost() -> None:
        raise LostLeaseError

    def go_on() -> None:
        with open_writer(tmp_path) as writer:
            writer.append(scans("A", 1), NO_REJECTS)
            writer.check = lost
            writer.append(scans("B", 1), NO_REJECTS)

    with pytest.raises(LostLeaseError):
        go_on()
    assert len(shown(tmp_path)) == 1  # of A, from before


def test_archive_json_is_not_published_once_the_lease_is_lost(
    tmp_path: Path, small_files: None
) -> None:
    def lost() -> None:
        raise LostLeaseError

    with open_writer(tmp_path) as writer:
        writer.append(scans("A", 1), NO_REJECTS)
        writer.check = lost
        with pytest.raises(LostLeaseError):
            writer.close()
    assert not (tmp_path / "archive.json").exists()


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"add": True}])
def test_an_ingest_that_slept_never_replaces_the_archive_of_the_one_that_went_on(
    tmp_path: Path, small_files: None, flags: dict[str, bool]
) -> None:
    if flags:
        write(tmp_path, scans("A", 1))
    with open_writer(tmp_path, **flags) as sleeper:
        sleeper.append(scans("S", 1), NO_REJECTS)
        overwrite(tmp_path, scans("W", 2))  # another job took over, and has finished
        winner = Archive(str(tmp_path)).info
        sleeper.append(scans("T", 1), NO_REJECTS)  # and not even the lease tells
        with pytest.raises(LeaseLostError, match="was changed by another job"):
            sleeper.close()
    assert Archive(str(tmp_path)).info == winner
    assert slice_ids(tmp_path) == ["W_1", "W_2"]


def test_an_archive_that_changed_after_the_look_at_it_is_not_written_to(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    write(tmp_path, scans("A", 1))
    before = shown(tmp_path)
    with pytest.raises(ArchiveError, match="another job has just changed this archive"):
        writer.__enter__()
    assert shown(tmp_path) == before


def reject(reason: str) -> pa.Table:
    row = {"source_uri": "/scans/x.tif", "patient_id": "X", "reason": reason}
    return pa.Table.from_pylist([row], schema=schema.REJECTS)


def test_a_reject_that_comes_every_night_is_listed_once(tmp_path: Path) -> None:
    with open_writer(tmp_path) as writer:
        writer.append(scans("A", 1), reject("16-bit"))
        writer.close()
    for _ in range(2):
        with open_writer(tmp_path, add=True) as writer:
            writer.append(schema.ARCHIVE.empty_table(), reject("16-bit"))
            writer.append(schema.ARCHIVE.empty_table(), reject("empty"))
            info = writer.close()
    assert info.rejects == 2
    assert sorted((info.reject_files or {}).values()) == [1, 1]


def test_an_addition_of_nothing_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, scans("A", 1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with open_writer(tmp_path, add=True) as writer:
        writer.close()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_what_patients_were_made_from_is_known_when_others_are_added(tmp_path: Path) -> None:
    files = SourceFiles(3, "listing", "content")
    with open_writer(tmp_path) as writer:
        writer.append(scans("A", 1), NO_REJECTS, files)
        writer.append(scans("B", 1), NO_REJECTS)
        writer.close()
    known = open_writer(tmp_path, add=True).update.known
    assert known == {"A": {"A": files}, "B": {"B": None}}
