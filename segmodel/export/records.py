"""Records of an export: the target, a series, its files, the report of a task."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from segmodel.core.geometry import Spacing
from segmodel.export.file_names import SeriesKey
from segmodel.export.series_mask import SeriesMask
from segmodel.storage.folder_lock import WorkerLease

RESEARCH_USE = "research use, not for diagnosis"
"""What every exported file says of itself."""


@dataclass(frozen=True)
class Model:
    """What made the masks."""

    version: str
    """Of this program."""
    weights_sha256: str
    threshold: float
    postprocessing: str


@dataclass(frozen=True)
class Target:
    """The same for all tasks of an export."""

    archive: str
    run: str
    output: str
    format: str
    """Also the folder of the files."""
    channels: tuple[str, ...]
    """Of the archive."""
    with_images: bool
    spacing: Spacing | None
    """Of series whose spacing the archive does not know."""
    model: Model
    lease: WorkerLease
    """Of the driver on the output folder."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One series, a row of exported.csv."""

    patient_id: str
    series_id: str
    file: str
    """Of the mask, below the output folder."""
    slices: int
    """Of the grid."""
    slices_unknown: int
    """That have no mask."""
    tumor_voxels: int
    tumor_volume_ml: float | None
    note: str
    images: tuple[str, ...] = ()
    """Files of the channels."""


TABLE_COLUMNS = pa.schema(
    [
        ("patient_id", pa.string()),
        ("series_id", pa.string()),
        ("file", pa.string()),
        ("slices", pa.int64()),
        ("slices_unknown", pa.int64()),
        ("tumor_voxels", pa.int64()),
        ("tumor_volume_ml", pa.float64()),
        ("note", pa.string()),
    ]
)
"""Of exported.csv: all of `Exported` but the images."""


@dataclass(frozen=True)
class Reject:
    """A series that could not be exported, a row of rejects.csv."""

    patient_id: str
    series_id: str
    reason: str


@dataclass(frozen=True)
class SeriesInput:
    """A series that is to become files."""

    key: SeriesKey
    stem: str
    """The beginning of its files' names."""
    found: SeriesMask
    rows: pa.Table
    """Its slices, in order: the light columns, and others that the format needs."""
    known: Mapping[str, Any] | None
    """Its row of `schema.ARCHIVE_SERIES`; None in an archive of version 1."""
    source_files: tuple[str, ...]
    """URIs among which its images are; none if the archive says where they are."""


@dataclass(frozen=True)
class SeriesFiles:
    """The files of a series."""

    mask: str
    """Name of the mask's file."""
    contents: Mapping[str, bytes]
    """Of each file by its name, the mask's among them."""
    note: str = ""
    """What a reader should know of them, beside the note of the mask."""


@dataclass(frozen=True)
class Report:
    """What a task did."""

    exported: tuple[Exported, ...]
    rejects: tuple[Reject, ...]

    def to_json(self) -> bytes:
        """For `from_json`."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Report":
        """The report that `to_json` wrote.

        Raises:
            ValueError: it is none.
        """
        try:
            values = json.loads(content)
            exported = [
                Exported(**{**row, "images": tuple(row["images"])}) for row in values["exported"]
            ]
            return cls(tuple(exported), tuple(Reject(**row) for row in values["rejects"]))
        except (KeyError, TypeError) as error:
            raise ValueError(str(error)) from error

    @property
    def files(self) -> Iterable[str]:
        """All files of it, below the output folder."""
        return (name for row in self.exported for name in (row.file, *row.images))
