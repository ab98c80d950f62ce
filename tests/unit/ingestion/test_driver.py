"""The parts of an ingest that need no Ray."""

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest

from segmodel.archive.slice_file import SliceFileWriter
from segmodel.core import schema
from segmodel.core.errors import DiskFullError, SourceError
from segmodel.ingestion import driver
from segmodel.sources.base import PatientRecord
from segmodel.sources.lgg import LggSource
from segmodel.sources.phantom import PhantomSource
from tests.support.scans import scans, write
from tests.support.tiffs import rgb, save

NOTHING = schema.ARCHIVE.empty_table()


def record(slices: pa.Table, *reasons: str) -> PatientRecord:
    rows = [{"source_uri": "/x.tif", "patient_id": "A", "reason": reason} for reason in reasons]
    return PatientRecord(slices, pa.Table.from_pylist(rows, schema=schema.REJECTS))


SOURCE = LggSource("/scans", None)


def test_patients_are_read_up_to_the_first_with_a_slice() -> None:
    records = iter([record(NOTHING, "16-bit"), record(scans("B", 1)), record(scans("C", 1))])
    first = driver._read_until_usable(records, SOURCE, 3, may_be_none=False)
    assert [each.slices.num_rows for each in first] == [0, 1]
    assert next(records).slices["patient_id"][0].as_py() == "C"


def test_a_source_without_a_usable_slice_is_refused_with_the_first_reason() -> None:
    records = iter([record(NOTHING, "16-bit", "empty"), record(NOTHING, "empty")])
    with pytest.raises(
        SourceError,
        match=r"no usable slice of 2 patients.*3 files were left out; the first: /x\.tif: 16-bit",
    ) as refused:
        driver._read_until_usable(records, SOURCE, 2, may_be_none=False)
    assert refused.value.exit_code == 2


def test_an_addition_of_known_patients_alone_is_no_error() -> None:
    assert len(driver._read_until_usable(iter([record(NOTHING)]), SOURCE, 1, may_be_none=True)) == 1


@pytest.mark.parametrize(("seed", "rejects"), [(0, 0), (1, 1)])
def test_a_known_patient_is_a_reject_only_if_made_from_other_files(seed: int, rejects: int) -> None:
    before = PhantomSource(count=1, slices=2, size=32, seed=0).read("PHANTOM_0001").files
    assert before is not None
    source = PhantomSource(count=1, slices=2, size=32, seed=seed)
    again = driver._look_again(source, "PHANTOM_0001", before)
    assert (again.slices.num_rows, again.rejects.num_rows) == (0, rejects)


def test_the_reject_of_a_known_patient_names_its_folder_and_what_to_do(tmp_path: Path) -> None:
    save(tmp_path / "A", "A_1.tif", rgb())
    source = LggSource(str(tmp_path), None)
    before = source.read("A").files
    assert before is not None
    save(tmp_path / "A", "A_2.tif", rgb())
    (row,) = driver._look_again(source, "A", before).rejects.to_pylist()
    assert (row["source_uri"], row["patient_id"]) == (f"{tmp_path}/A", "A")
    assert "made from other files (1 files then, 2 now)" in row["reason"]
    assert "ingest all patients with --overwrite" in row["reason"]


def test_a_patient_of_which_the_archive_knows_no_files_is_not_compared() -> None:
    assert driver._look_again(SOURCE, "nowhere", None).rejects.num_rows == 0


class FullDisk(SliceFileWriter):
    """Writes to the device that is always full."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(folder, name)
        with open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), self._file.sink.fileno())


@pytest.mark.parametrize(
    ("before", "kept"),
    [(False, "nothing of it is kept"), (True, "the archive that was there is as it was")],
)
def test_a_full_disk_is_named_with_what_is_kept_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, kept: str
) -> None:
    if before:
        write(tmp_path, scans("A", 1))
    left = sorted(tmp_path.rglob("*.*"))
    monkeypatch.setattr("segmodel.archive.writer.SliceFileWriter", FullDisk)
    with (
        pytest.raises(DiskFullError, match=rf"^{tmp_path}: no space is left .*; {kept}\. Free"),
        driver._full_disk_explained(str(tmp_path)),
    ):
        write(tmp_path, scans("B", 1), add=before)
    assert sorted(tmp_path.rglob("*.*")) == left


def test_other_errors_of_a_disk_stay_what_they_are(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="Stale") as raised,
        driver._full_disk_explained(str(tmp_path)),
    ):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    assert not isinstance(raised.value, DiskFullError)
