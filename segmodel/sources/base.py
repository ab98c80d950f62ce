"""Raw scans, read one patient at a time."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segmodel.core.geometry import Spacing
from segmodel.core.source_files import SourceFiles
from segmodel.settings.jobs import IngestConfig


@dataclass(frozen=True)
class PatientRecord:
    """One patient as a source gives it."""

    slices: pa.Table
    """`schema.ARCHIVE`."""
    rejects: pa.Table
    """`schema.REJECTS`."""
    files: SourceFiles | None = None
    """What the slices were read from; None for a patient that cannot be listed."""


class Source(Protocol):
    """Where patients come from."""

    @property
    def name(self) -> str:
        """For archive.json."""

    @property
    def channels(self) -> tuple[str, ...]:
        """What each channel shows."""

    @property
    def intensity_scaling(self) -> str:
        """For archive.json."""

    def patients(self) -> list[str]:
        """Ids of all patients, sorted."""

    def read(self, patient_id: str) -> PatientRecord:
        """All slices of one patient, and the files that had to be left out."""

    def place(self, patient_id: str) -> str:
        """Where a patient's files lie, for people."""

    def difference(self, patient_id: str, before: SourceFiles) -> str | None:
        """How the files of a patient differ from those that it was made from; None if they do not."""


def open_source(config: IngestConfig) -> Source:
    """The source that the configuration asks for; its module is imported only then.

    Raises:
        SourceError: there is nothing to read.
    """
    spacing = None
    if config.spacing_mm is not None:
        row_mm, column_mm, slice_mm = config.spacing_mm
        spacing = Spacing(slice_mm=slice_mm, row_mm=row_mm, column_mm=column_mm)
    if config.source is None:
        from segmodel.sources.phantom import PhantomSource

        return PhantomSource(
            config.phantom_patients,
            config.phantom_slices,
            config.phantom_size,
            config.seed,
            spacing,
        )
    from segmodel.sources.lgg import LggSource

    return LggSource(config.source, spacing)


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
