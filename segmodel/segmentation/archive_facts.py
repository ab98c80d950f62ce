"""What an archive holds, counted from its index alone."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segmodel.archive.slice_format import REQUIRED
from segmodel.core.geometry import SPACING_COLUMNS

_PNG_FRAME = 8 + 25 + 12 + 12 + 6
"""Bytes of a PNG around its rows: signature, IHDR, the frames of IDAT and IEND, and zlib's header
and checksum."""
_NUMBERS = 8 + 4 + 4
"""Bytes of tumor_pixels, mean_probability and probability_sum."""


@dataclass(frozen=True)
class ArchiveFacts:
    """Facts about an archive that can be read without the pixels."""

    patients: int
    series: int
    shapes: dict[tuple[int, int], int]
    """Slices of each (height, width), the commonest first."""
    without_spacing: int
    """Slices that lack one of the three lengths."""
    incomplete: int
    """Slices without an id, patient, series, index, height or width."""
    unreadable: int
    """Slices whose ids cannot be read, in files that can be opened."""
    most_bytes: int
    """That the masks of all slices can take. A row of a 1-bit image takes its bits and a byte more,
    before compression."""

    @property
    def indexed(self) -> int:
        """Slices whose ids can be read."""
        return sum(self.shapes.values())


def count_facts(index: pa.Table, slices: int) -> ArchiveFacts:
    """Count what an index says.

    Args:
        index: `Archive.index()`.
        slices: of all files that can be opened.
    """
    by_shape = (
        index.group_by(["height", "width"])
        .aggregate([([], "count_all")])
        .sort_by([("count_all", "descending")])
    )
    shapes = {(row["height"], row["width"]): row["count_all"] for row in by_shape.to_pylist()}
    pngs = sum(
        count * (_PNG_FRAME + height * (1 + -(-width // 8)))
        for (height, width), count in shapes.items()
        if height is not None and width is not None
    )
    return ArchiveFacts(
        patients=pc.count_distinct(index["patient_id"]).as_py(),
        series=index.group_by(["patient_id", "series_id"]).aggregate([]).num_rows,
        shapes=shapes,
        without_spacing=_null_in_any(index, SPACING_COLUMNS),
        incomplete=_null_in_any(index, REQUIRED),
        unreadable=slices - index.num_rows,
        most_bytes=pngs + index.nbytes + _NUMBERS * index.num_rows,
    )


def _null_in_any(index: pa.Table, columns: tuple[str, ...]) -> int:
    if not index.num_rows:
        return 0
    missing = pc.is_null(index[columns[0]])
    for name in columns[1:]:
        missing = pc.or_(missing, pc.is_null(index[name]))
    return int(pc.sum(missing).as_py())
