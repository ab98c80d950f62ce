"""A portion of an ingest: some patients, read and written by one Ray task into files of its own.

The task's report says what it wrote. It is also published beside the archive, so that an ingest
that is started again does not read the same patients twice.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import pyarrow as pa

from segmodel.archive import manifest
from segmodel.archive.slice_file import WrittenFile
from segmodel.archive.writer import PatientsWriter
from segmodel.sources.base import NONE_KNOWN, KnownSeries, Source, read_patient
from segmodel.storage import store
from segmodel.storage.folder_lock import WorkerLease

PATIENTS = 8
"""Patients of a portion: few, so that an interruption costs little and many workers have work."""

Known = Mapping[str, KnownSeries]
"""Patients that are in the archive already, and their series."""


@dataclass(frozen=True)
class Target:
    """Where the tasks of one ingest write."""

    archive: str
    ingest: str
    """Id of the ingest, a part of all its files' names."""
    channels: int
    lease: WorkerLease
    """The lease that the driver holds on the folder."""


@dataclass(frozen=True)
class Portion:
    """Patients that one task reads."""

    part: str
    """Name of the portion in its files' names."""
    patients: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What a task did."""

    part: str
    files: tuple[WrittenFile, ...]
    slices: int
    added: int
    """Patients with slices that were not in the archive before."""
    new_series: int
    """Series of patients that were in the archive before."""
    rejects: tuple[dict[str, Any], ...]
    """Rows of `schema.REJECTS`."""
    choices: tuple[dict[str, Any], ...]
    """Rows of `schema.SERIES_CHOICES`; the study date as text."""

    def to_json(self) -> bytes:
        """For `from_json`."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Report":
        """The report that `to_json` wrote.

        Raises:
            ValueError: the text is no report.
        """
        try:
            values = json.loads(content)
            return cls(
                part=str(values["part"]),
                files=tuple(WrittenFile(**file) for file in values["files"]),
                slices=int(values["slices"]),
                added=int(values["added"]),
                new_series=int(values["new_series"]),
                rejects=tuple(values["rejects"]),
                choices=tuple(values["choices"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(str(error)) from error


def plan(patients: list[str]) -> list[Portion]:
    """Portions of neighbouring patients; the same every time."""
    starts = range(0, len(patients), PATIENTS)
    return [
        Portion(f"{number:05d}", tuple(patients[start : start + PATIENTS]))
        for number, start in enumerate(starts)
    ]


def split(portion: Portion) -> list[Portion]:
    """A portion for each of its patients."""
    return [
        Portion(f"{portion.part}-{number}", (patient,))
        for number, patient in enumerate(portion.patients)
    ]


def to_table(rows: Sequence[Mapping[str, Any]], columns: pa.Schema) -> pa.Table:
    """Rows of reports as a table; dates are texts in them."""
    dates = [field.name for field in columns if pa.types.is_date(field.type)]
    values = [
        {**row, **{name: date.fromisoformat(row[name]) for name in dates if row.get(name)}}
        for row in rows
    ]
    return pa.Table.from_pylist(values, schema=columns)


def process(source: Source, portion: Portion, known: Known, target: Target) -> Report:
    """Read the patients of a portion and write their files; runs in a Ray task.

    Args:
        source: that holds these patients.
        portion: which ones.
        known: those of them that are in the archive already.
        target: where to write.

    Raises:
        OSError: a disk or the store gives no answer, or no space is left.
        LeaseLostError: another job has the folder.
        ArchiveError: the source gave slices that break the archive's format.
    """
    writer = PatientsWriter(
        target.archive,
        target.ingest,
        portion.part,
        target.channels,
        target.lease.check,
    )
    rejects: list[dict[str, Any]] = []
    choices: list[dict[str, Any]] = []
    slices = added = new_series = 0
    try:
        for patient in portion.patients:
            record = read_patient(source, patient, known.get(patient, NONE_KNOWN))
            writer.append(record.slices, record.series)
            slices += record.slices.num_rows
            added += patient not in known and record.slices.num_rows > 0
            new_series += record.series.num_rows if patient in known else 0
            rejects += record.rejects.to_pylist()
            choices += map(_with_text_dates, record.choices.to_pylist())
        report = Report(
            part=portion.part,
            files=tuple(writer.finish()),
            slices=slices,
            added=added,
            new_series=new_series,
            rejects=tuple(rejects),
            choices=tuple(choices),
        )
    except BaseException:
        writer.discard()
        raise
    publish(report, target)
    return report


def _with_text_dates(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, date) else value for name, value in row.items()
    }


def publish(report: Report, target: Target) -> None:
    """Publish what a portion did, for an ingest that resumes."""
    name = manifest.report_file(target.ingest, report.part)
    store.publish(store.join(target.archive, manifest.REPORTS, name), report.to_json())


def lost(portion: Portion, place: str, reason: str) -> Report:
    """The report of a portion of one patient that could not be read at all."""
    row = {
        "source_uri": place,
        "patient_id": portion.patients[0],
        "stage": "crash",
        "reason": reason,
    }
    return Report(portion.part, (), 0, 0, 0, (row,), ())
