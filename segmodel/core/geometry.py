"""Lengths and volumes in millimetres."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from segmodel.core.errors import GeometryError

MM3_PER_ML = 1000.0
SPACING_COLUMNS = ("slice_spacing_mm", "row_spacing_mm", "column_spacing_mm")
"""Spacing columns of the tables of slices, in the order of the fields of `Spacing`."""


@dataclass(frozen=True)
class Spacing:
    """Distance between voxel centres in mm; None where it is unknown."""

    slice_mm: float | None
    row_mm: float | None
    column_mm: float | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The spacing in a row that has `SPACING_COLUMNS`."""
        return cls(*(row[name] for name in SPACING_COLUMNS))

    def __str__(self) -> str:
        known = (
            "?" if mm is None else f"{mm:.4g}"
            for mm in (self.slice_mm, self.row_mm, self.column_mm)
        )
        return f"{' x '.join(known)} mm"

    def voxel_mm3(self) -> float:
        """Volume of one voxel, in cubic millimetres.

        Raises:
            GeometryError: a distance is unknown, or is no length.
        """
        lengths = {"slice": self.slice_mm, "row": self.row_mm, "column": self.column_mm}
        unknown = [axis for axis, mm in lengths.items() if mm is None]
        if unknown:
            raise GeometryError(f"unknown {', '.join(unknown)} spacing")
        wrong = {
            axis: mm
            for axis, mm in lengths.items()
            if mm is None or not (math.isfinite(mm) and mm > 0)
        }
        if wrong:
            raise GeometryError(
                "impossible spacing: " + ", ".join(f"{axis} {mm} mm" for axis, mm in wrong.items())
            )
        return math.prod(mm for mm in lengths.values() if mm is not None)
