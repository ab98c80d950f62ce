import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from segmodel.archive import manifest
from segmodel.archive.slice_file import SliceFileWriter
from segmodel.core.errors import LeaseLostError
from segmodel.core.source_files import SourceFiles
from segmodel.ingestion import portion as portions
from segmodel.ingestion.portion import Portion, Report, Target
from segmodel.sources.base import NONE_KNOWN, KnownSeries, PatientRecord
from segmodel.sources.phantom import PhantomSource
from segmodel.storage import folder_lock
from segmodel.storage.folder_lock import WorkerLease

SOURCE = PhantomSource(count=3, slices=2, size=32, seed=0)
ALL = Portion("00000", tuple(SOURCE.patients()))


@pytest.fixture
def target(tmp_path: Path):
    """A folder whose lease is held."""
    with folder_lock.acquire_lock(str(tmp_path)) as lease:
        yield Target(str(tmp_path), "0" * 12, 3, lease.for_workers())


def test_portions_are_of_neighbours_and_the_same_every_time() -> None:
    patients = [f"P{number:02d}" for number in range(10)]
    first, second = portions.plan(patients)
    assert first.patients == tuple(patients[:8])
    assert (second.part, second.patients) == ("00001", ("P08", "P09"))


def test_a_portion_is_split_into_its_patients_under_other_names() -> None:
    assert portions.split(Portion("00003", ("A", "B"))) == [
        Portion("00003-0", ("A",)),
        Portion("00003-1", ("B",)),
    ]


def test_a_task_writes_a_file_of_its_own_and_reports_it(target: Target) -> None:
    report = portions.process(SOURCE, ALL, {}, target)
    (file,) = report.files
    table = pq.read_table(Path(target.archive) / file.name)
    assert (file.slices, table.num_rows, report.slices, report.added) == (6, 6, 6, 3)
    series = pq.read_table(Path(target.archive) / "series" / file.name)
    assert series["patient_id"].to_pylist() == SOURCE.patients()
    published = Path(target.archive, manifest.REPORTS, f"{'0' * 12}-00000.json").read_bytes()
    assert Report.from_json(published) == report


def test_a_known_patient_is_passed_over_or_a_reject(target: Target) -> None:
    first, second = SOURCE.patients()[:2]
    other = PhantomSource(count=3, slices=2, size=32, seed=9).read(second).series.to_pylist()[0]
    changed = SourceFiles(other["source_files"], other["source_listing"], other["source_content"])
    known = {first: {first: None}, second: {second: changed}}
    report = portions.process(SOURCE, ALL, known, target)
    assert (report.slices, report.added, report.new_series) == (2, 1, 0)
    (reject,) = report.rejects
    assert (reject["patient_id"], reject["stage"]) == (second, "known")
    assert "made from other files" in reject["reason"]


def test_nothing_appears_once_another_job_has_the_folder(tmp_path: Path) -> None:
    with folder_lock.acquire_lock(str(tmp_path)):
        sleeper = Target(str(tmp_path), "0" * 12, 3, WorkerLease(str(tmp_path), "another token"))
        with pytest.raises(LeaseLostError):
            portions.process(SOURCE, ALL, {}, sleeper)
    assert not list(tmp_path.rglob("*.parquet*"))


class FullDisk(SliceFileWriter):
    """Writes to the device that is always full."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(folder, name)
        with open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), self._file.sink.fileno())


def test_on_a_full_disk_nothing_half_written_is_left(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmodel.archive.writer.SliceFileWriter", FullDisk)
    with pytest.raises(OSError, match="No space left"):
        portions.process(SOURCE, ALL, {}, target)
    assert not list(Path(target.archive).rglob("slices-*"))


def test_a_patient_that_kills_its_reader_is_a_reject() -> None:
    report = portions.lost(Portion("00003-1", ("B",)), "/scans/B", "its reader died")
    (reject,) = report.rejects
    assert (reject["patient_id"], reject["source_uri"], reject["stage"]) == (
        "B",
        "/scans/B",
        "crash",
    )
    assert Report.from_json(report.to_json()) == report


def test_new_series_of_a_known_patient_are_counted(target: Target) -> None:
    first = SOURCE.patients()[0]
    report = portions.process(SOURCE, ALL, {first: {"last year's": None}}, target)
    assert (report.added, report.new_series) == (2, 1)


def test_a_fault_that_nobody_foresaw_costs_its_patient_alone(target: Target) -> None:
    class Faulty(PhantomSource):
        def read(self, patient_id: str, known: KnownSeries = NONE_KNOWN) -> PatientRecord:
            if patient_id == second:
                raise ZeroDivisionError("in a library")
            return super().read(patient_id, known)

    source = Faulty(count=2, slices=3, size=32, seed=0)
    first, second = source.patients()
    report = portions.process(source, Portion("00000", (first, second)), {}, target)
    assert (report.slices, report.added) == (3, 1)
    (reject,) = report.rejects
    assert (reject["patient_id"], reject["stage"]) == (second, "crash")
    assert reject["reason"] == "its files cannot be read: ZeroDivisionError: in a library"
