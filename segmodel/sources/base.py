"""The interface of all sources: raw scans, read one patient at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segmodel.core import schema
from segmodel.core.errors import SegmodelError
from segmodel.core.geometry import Spacing
from segmodel.core.source_files import SourceFiles

KnownSeries = Mapping[str, SourceFiles | None]
"""Ids of series, and what each was made from, if that is known."""

NONE_KNOWN: KnownSeries = MappingProxyType({})


class RejectError(Exception):
    """Why a file, a series or a mask is left out; becomes a row of the rejects."""


@dataclass(frozen=True)
class PatientRecord:
    """One patient as a source gives it."""

    slices: pa.Table
    """`schema.ARCHIVE`."""
    rejects: pa.Table
    """`schema.REJECTS`."""
    series: pa.Table
    """`schema.ARCHIVE_SERIES`."""
    choices: pa.Table = field(default_factory=schema.SERIES_CHOICES.empty_table)
    """`schema.SERIES_CHOICES`, of a source that has to choose."""


class Source(Protocol):
    """A source of patients: a folder of scans in one format, or phantoms."""

    @property
    def name(self) -> str:
        """For archive.json."""

    @property
    def channels(self) -> tuple[str, ...]:
        """What each channel shows."""

    @property
    def intensity_scaling(self) -> str:
        """For archive.json."""

    @property
    def settings(self) -> object:
        """Other settings that decide what is read, as JSON. An ingest resumes if they are equal."""

    def patients(self) -> list[str]:
        """Ids of all patients, sorted."""

    def restricted_to(self, *patients: str) -> "Source":
        """A copy of the source that holds only these patients."""

    def problems(self) -> list[dict[str, Any]]:
        """Rows of `schema.REJECTS` that belong to no patient; found by `patients`."""

    def read(self, patient_id: str, known: KnownSeries = NONE_KNOWN) -> PatientRecord:
        """All slices of one patient, and the files that had to be left out.

        Args:
            patient_id: one of `patients`.
            known: series of this patient that are in the archive. They are passed over; one that
                would be made from other files now is a reject.
        """

    def location_of(self, patient_id: str) -> str:
        """URI of the patient's folder or first file, for messages."""


def read_patient(source: Source, patient_id: str, known: KnownSeries = NONE_KNOWN) -> PatientRecord:
    """`Source.read`; an unexpected error rejects this patient and does not end the job.

    Raises:
        OSError: a disk or the store gives no answer.
        SegmodelError: an error that concerns all patients.
    """
    try:
        return source.read(patient_id, known)
    except (OSError, SegmodelError):
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file may raise anything in a library
        record = RecordBuilder(patient_id)
        reason = f"its files cannot be read: {type(error).__name__}: {error}"
        record.reject(source.location_of(patient_id), "crash", reason)
        return record.finish()


ParallelMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Applies a function to each item, possibly on other machines; results come in any order."""


def plain_series(
    slices: pa.Table, source_format: str, channels: Sequence[str], files: SourceFiles | None
) -> pa.Table:
    """`schema.ARCHIVE_SERIES` of a patient whose source knows no positions; at most one row.

    Args:
        slices: `schema.ARCHIVE`, of one series.
        source_format: name of the format.
        channels: what each channel shows.
        files: what the slices were read from.
    """
    if not slices.num_rows:
        return schema.ARCHIVE_SERIES.empty_table()
    first = slices.slice(0, 1).to_pylist()[0]
    row = {
        "patient_id": first["patient_id"],
        "series_id": first["series_id"],
        "slices": slices.num_rows,
        "source_format": source_format,
        "channels": [{"name": name, "because": f"channel of {source_format}"} for name in channels],
        **files_columns(files),
    }
    return pa.Table.from_pylist([row], schema=schema.ARCHIVE_SERIES)


def files_columns(files: SourceFiles | None) -> dict[str, object]:
    """The columns of `schema.ARCHIVE_SERIES` that say what a series was made from."""
    names = ("source_files", "source_listing", "source_content")
    values = (files.count, files.listing, files.content) if files else (None, None, None)
    return dict(zip(names, values, strict=True))


def changed(source_uri: str, patient_id: str, difference: str) -> dict[str, str]:
    """A row of `schema.REJECTS` for a series of the archive whose source files have changed."""
    return {
        "source_uri": source_uri,
        "patient_id": patient_id,
        "stage": "known",
        "reason": f"is in the archive already, made from other files ({difference}); nothing of "
        "it was taken: to replace it, ingest all patients with --overwrite",
    }


def slice_row(
    *,
    slice_id: str,
    patient_id: str,
    slice_index: int,
    pixels_hwc: npt.NDArray[np.uint8],
    mask_hw: npt.NDArray[np.bool_] | None,
    spacing: Spacing | None,
    source_uri: str,
) -> dict[str, object]:
    """One row of `schema.ARCHIVE`, for a source without series."""
    return {
        "slice_id": slice_id,
        "patient_id": patient_id,
        "series_id": patient_id,
        "slice_index": slice_index,
        "height": pixels_hwc.shape[0],
        "width": pixels_hwc.shape[1],
        "pixels": pixels_hwc.tobytes(),
        "mask": None if mask_hw is None else mask_hw.astype(np.uint8).tobytes(),
        "row_spacing_mm": spacing.row_mm if spacing else None,
        "column_spacing_mm": spacing.column_mm if spacing else None,
        "slice_spacing_mm": spacing.slice_mm if spacing else None,
        "source_uri": source_uri,
    }


class RecordBuilder:
    """The tables of one patient while they are read."""

    def __init__(self, patient_id: str) -> None:
        self.patient_id = patient_id
        self._slices = [schema.ARCHIVE.empty_table()]
        self._series = [schema.ARCHIVE_SERIES.empty_table()]
        self._rejects: list[dict[str, str]] = []
        self._choices: list[dict[str, object]] = []

    def add(self, slices: pa.Table, series: pa.Table) -> None:
        """One series: `schema.ARCHIVE` and `schema.ARCHIVE_SERIES`."""
        self._slices.append(slices)
        self._series.append(series)

    def reject(self, uri: str, stage: str, reason: str) -> None:
        """Add a reject: what is left out, at which stage, and why."""
        self._rejects.append(
            {"source_uri": uri, "patient_id": self.patient_id, "stage": stage, "reason": reason}
        )

    def reject_row(self, row: Mapping[str, str]) -> None:
        """A whole row of `schema.REJECTS`."""
        self._rejects.append(dict(row))

    def choose(self, row: dict[str, object]) -> None:
        """A row of `schema.SERIES_CHOICES`, without the patient."""
        self._choices.append({"patient_id": self.patient_id, **row})

    def finish(self) -> PatientRecord:
        """The record with all tables."""
        return PatientRecord(
            slices=pa.concat_tables(self._slices),
            rejects=pa.Table.from_pylist(self._rejects, schema=schema.REJECTS),
            series=pa.concat_tables(self._series),
            choices=pa.Table.from_pylist(self._choices, schema=schema.SERIES_CHOICES),
        )
