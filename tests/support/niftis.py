"""Small NIfTI files whose voxels and positions are known."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Axes to left, posterior and superior, 1 mm: an affine of NIfTI is in RAS."""


def spaced(*mm: float, axes: np.ndarray = LPS) -> np.ndarray:
    return axes @ np.diag([*mm, 1.0])


def save(
    path: Path,
    voxels: np.ndarray,
    affine: np.ndarray = LPS,
    *,
    kind: Any = nibabel.Nifti1Image,
    sform: int = 1,
    qform: int = 1,
    unit: str = "mm",
    slope: float | None = None,
    big_endian: bool = False,
) -> Path:
    """Write a file; without slope the voxels are stored as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = kind.header_class(endianness=">" if big_endian else "<")
    header.set_data_dtype(voxels.dtype)
    image = kind(voxels, affine, header)
    image.header.set_xyzt_units(unit)
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine if qform else None, qform)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nibabel.save(image, path)
    return path


def head(shape: tuple[int, int, int] = (6, 5, 4)) -> np.ndarray:
    """Different values everywhere, none of them 0."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.int16).reshape(shape)
