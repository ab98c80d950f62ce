"""Lengths and volumes in millimetres."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segmodel.errors import GeometryError

MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Spacing:
    """Distance between voxel centres in mm; None where it is unknown."""

    slice_mm: float | None
    row_mm: float | None
    column_mm: float | None

    def voxel_mm3(self) -> float:
        """Volume of one voxel, in cubic millimetres.

        Raises:
            GeometryError: a distance is unknown, or is no length.
        """
        lengths = {"slice": self.slice_mm, "row": self.row_mm, "column": self.column_mm}
        unknown = [axis for axis, mm in lengths.items() if mm is None]
        if unknown:
            raise GeometryError(f"unknown {', '.join(unknown)} spacing")
        wrong = {axis: mm for axis, mm in lengths.items() if mm is None or not (math.isfinite(mm) and mm > 0)}
        if wrong:
            raise GeometryError("impossible spacing: " + ", ".join(f"{axis} {mm} mm" for axis, mm in wrong.items()))
        return math.prod(mm for mm in lengths.values() if mm is not None)


@dataclass(frozen=True)
class SliceGaps:
    """What is wrong with the slice indices of one series."""

    missing: int
    """Indices between the first and the last that no slice has."""
    duplicated: int
    """Slices whose index an earlier slice already has."""


def slice_gaps(slice_indices: Iterable[int]) -> SliceGaps:
    """Count the holes and the repetitions in the slice indices of one series, in any order."""
    counts = Counter(slice_indices)
    if not counts:
        return SliceGaps(0, 0)
    expected = max(counts) - min(counts) + 1
    return SliceGaps(missing=expected - len(counts), duplicated=sum(counts.values()) - len(counts))


def tumor_volume_mm3(mask_dhw: npt.NDArray[np.bool_], spacing: Spacing) -> float:
    """Volume of one patient's tumor, in cubic millimetres.

    Args:
        mask_dhw: bool, (slices, rows, columns), without gaps between slices.
        spacing: distance between voxel centres along the same axes.

    Raises:
        GeometryError: the spacing is unknown or impossible along some axis.
    """
    return float(np.count_nonzero(mask_dhw)) * spacing.voxel_mm3()
