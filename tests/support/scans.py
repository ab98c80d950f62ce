"""Small archives whose slices differ from each other, and damage to them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segmodel.archive.manifest import ArchiveInfo
from segmodel.archive.reader import Archive
from segmodel.core import schema
from segmodel.core.geometry import Spacing
from segmodel.sources.base import slice_row
from tests.support.archive_writer import ArchiveWriter

CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
SPACING = Spacing(slice_mm=5.0, row_mm=1.0, column_mm=1.0)


def scans(
    patient_id: str, count: int, *, spacing: Spacing | None = SPACING, first_index: int = 1
) -> pa.Table:
    """Slices of 4x4 pixels with noise in them, the same at every call."""
    rng = np.random.default_rng([ord(letter) for letter in patient_id])
    rows = [
        slice_row(
            slice_id=f"{patient_id}_{index}",
            patient_id=patient_id,
            slice_index=index,
            pixels_hwc=rng.integers(0, 256, (4, 4, 3), dtype=np.uint8),
            mask_hw=None,
            spacing=spacing,
            source_uri=f"/scans/{patient_id}_{index}.tif",
        )
        for index in range(first_index, first_index + count)
    ]
    return pa.Table.from_pylist(rows, schema=schema.ARCHIVE)


def write(
    folder: Path, *patients: pa.Table, add: bool = False, channels: tuple[str, ...] = CHANNELS
) -> ArchiveInfo:
    with ArchiveWriter(
        str(folder),
        source="test",
        channels=channels,
        intensity_scaling="none",
        overwrite=False,
        add=add,
    ) as writer:
        for slices in patients:
            writer.append(slices, schema.REJECTS.empty_table())
        return writer.close()


def describe_series(folder: Path, **columns: dict[str, object]) -> None:
    """Set columns of the archive's table of series: of each, the value by patient."""
    for path in (folder / "series").iterdir():
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row |= {name: of[row["patient_id"]] for name, of in columns.items()}
        pq.write_table(pa.Table.from_pylist(rows, schema=schema.ARCHIVE_SERIES), path)


def files(folder: Path | str) -> list[Path]:
    """The Parquet files of an archive, in its order."""
    return [Path(folder) / name for name in Archive(str(folder)).files]


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip_page(path: Path, row_group: int, column: str) -> None:
    """Change one bit at the end of a column chunk: of its data, not of the header before them."""
    chunk = (
        pq.read_metadata(path).row_group(row_group).column(schema.ARCHIVE.get_field_index(column))
    )
    assert chunk.path_in_schema == column
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start + chunk.total_compressed_size - 4] ^= 0x10
    path.write_bytes(bytes(content))


def open_writer(folder: Path, *, overwrite: bool = False, add: bool = False) -> ArchiveWriter:
    """A writer of a new archive, or one that changes an archive."""
    return ArchiveWriter(
        str(folder),
        source="test",
        channels=CHANNELS,
        intensity_scaling="none",
        overwrite=overwrite,
        add=add,
    )


def shown(folder: Path) -> list[str]:
    """Files below the folder; hidden ones and tables of series, which go with slices, left out."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.parent.name != "series"
    )
