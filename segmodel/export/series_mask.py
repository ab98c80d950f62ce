"""The mask of one series on the whole grid of its source, and which of its slices are unknown."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segmodel.core.geometry import MM3_PER_ML, Spacing
from segmodel.core.grid import Grid, Reorientation
from segmodel.core.mask_png import decode_mask
from segmodel.sources.base import RejectError

NAMED_SLICES = 10
"""So many slice numbers stand in a note."""

_LPS_AXES = Reorientation((2, 1, 0), (False, False, False))
"""Axes (left, posterior, superior), as BraTS files have them, from the archive's."""


@dataclass(frozen=True)
class SeriesGrid:
    """The grid of a series in the archive's axes, and its axes in the source."""

    grid: Grid
    """Axes (slice, row, column)."""
    reorientation: Reorientation
    """From the axes of the source."""
    first_index: int
    """`slice_index` of the first slice of the grid."""
    volume_mm3: float | None
    """Of a voxel; None where there is no single distance between slices."""
    note: str = ""
    """What a reader should know of it."""

    @property
    def source_grid(self) -> Grid:
        """The grid of the source."""
        return self.grid.undo_reorientation(self.reorientation)


@dataclass(frozen=True)
class SeriesMask:
    """The final mask of a series."""

    series_grid: SeriesGrid
    mask_dhw: npt.NDArray[np.bool_]
    """(slices, rows, columns) of the grid; nothing in slices that are unknown."""
    unknown: tuple[int, ...]
    """`slice_index` of slices that have no mask: not segmented, or not in the archive."""

    @property
    def tumor_voxels(self) -> int:
        """Voxels of the mask."""
        return int(np.count_nonzero(self.mask_dhw))

    @property
    def tumor_volume_ml(self) -> float | None:
        """None where slices are unknown, or have no single distance."""
        if self.unknown or self.series_grid.volume_mm3 is None:
            return None
        return self.tumor_voxels * self.series_grid.volume_mm3 / MM3_PER_ML

    @property
    def note(self) -> str:
        """What is missing and what is odd, for people; empty if all is well."""
        if not self.unknown:
            return self.series_grid.note
        named = ", ".join(map(str, self.unknown[:NAMED_SLICES]))
        more = ", …" if len(self.unknown) > NAMED_SLICES else ""
        some = "slice" if len(self.unknown) == 1 else "slices"
        text = f"{len(self.unknown)} {some} without a mask, tumor unknown there: {named}{more}"
        return "; ".join(filter(None, [text, self.series_grid.note]))


def grid_of_series(row: Mapping[str, Any]) -> SeriesGrid:
    """The grid of a series whose source knows positions.

    Args:
        row: of `schema.ARCHIVE_SERIES`, with an affine.
    """
    i, j, k = row["turn_axes"]
    a, b, c = row["turn_mirrored"]
    reorientation = Reorientation((i, j, k), (a, b, c))
    shape = [0, 0, 0]
    for size, becomes in zip(row["source_shape"], reorientation.axes, strict=True):
        shape[becomes] = size
    grid = Grid((shape[0], shape[1], shape[2]), np.array(row["affine"]).reshape(4, 4))
    reason = row["no_volume_reason"]
    return SeriesGrid(grid, reorientation, 1, None if reason else grid.voxel_mm3, reason or "")


def grid_without_position(rows: pa.Table, spacing: Spacing) -> SeriesGrid:
    """The grid of a series whose source knows no positions: its first voxel is at 0, 0, 0.

    Args:
        rows: its slices, in order, all of one size.
        spacing: of its voxels.

    Raises:
        GeometryError: the spacing is unknown or impossible.
    """
    volume = spacing.voxel_mm3()
    first, last = rows["slice_index"][0].as_py(), rows["slice_index"][-1].as_py()
    shape = (last - first + 1, rows["height"][0].as_py(), rows["width"][0].as_py())
    mm = [spacing.slice_mm, spacing.row_mm, spacing.column_mm]
    axes = np.eye(4)[[2, 1, 0, 3]]  # slices run to superior, rows to posterior, columns to left
    affine = axes @ np.diag([*(float(one or 0) for one in mm), 1.0])
    note = "the source has no position in the patient: the first voxel is at 0, 0, 0"
    return SeriesGrid(Grid(shape, affine), _LPS_AXES, first, volume, note)


def build(
    rows: pa.Table, series_grid: SeriesGrid, predicted: Mapping[str, bytes], blank: Set[str]
) -> SeriesMask:
    """Put the masks of a series on its grid.

    Args:
        rows: the light columns of its slices, in order.
        series_grid: of the series.
        predicted: PNG of each slice that was segmented, by slice id.
        blank: ids of slices whose pixels are all equal.

    Raises:
        RejectError: there is no mask, or the slices do not fit on the grid.
    """
    depth, height, width = series_grid.grid.shape
    mask = np.zeros((depth, height, width), bool)
    state = ["absent"] * depth
    for name, index in zip(
        *(rows[c].to_pylist() for c in ("slice_id", "slice_index")), strict=True
    ):
        number = index - series_grid.first_index
        if not 0 <= number < depth:
            raise RejectError(f"slice {index} lies outside the {depth} slices of its source")
        png = predicted.get(name)
        if png is None:
            state[number] = "blank" if name in blank else "absent"
            continue
        found = decode_mask(png)
        if found.shape != (height, width):
            raise RejectError(f"mask of slice {index} is {found.shape}, not {(height, width)}")
        mask[number], state[number] = found, "segmented"
    if "segmented" not in state:
        raise RejectError("no slice of it was segmented")
    unknown = [number + series_grid.first_index for number in _unknown(state)]
    return SeriesMask(series_grid, mask, tuple(unknown))


def check_slices(rows: pa.Table) -> None:
    """Raise RejectError for slices that make no volume.

    Args:
        rows: the light columns of a series.
    """
    sizes = set(zip(*(rows[name].to_pylist() for name in ("height", "width")), strict=True))
    if len(sizes) > 1:
        raise RejectError(f"slices of {len(sizes)} sizes: no volume")
    if len(rows["slice_index"].unique()) < rows.num_rows:
        raise RejectError("slices with the same number")


def _unknown(state: Sequence[str]) -> list[int]:
    """Slices without a mask; blank ones at either end hold no tissue, and so no tumor."""
    first = next(n for n, one in enumerate(state) if one != "blank")
    last = len(state) - next(n for n, one in enumerate(reversed(state)) if one != "blank")
    return [number for number in range(first, last) if state[number] != "segmented"]
