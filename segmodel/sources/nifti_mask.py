"""The mask of a NIfTI case: where its tumor lies on the grid of its image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segmodel.core.grid import Grid
from segmodel.sources.base import RejectError
from segmodel.sources.nifti_file import NiftiVolume
from segmodel.sources.volume import count_values

_ROUNDING = 1e-3
"""A label may differ by this much from a whole number."""


@dataclass(frozen=True)
class Mask:
    """An annotation with axes (slice, row, column) in the archive's orientation."""

    tumor: npt.NDArray[np.bool_]
    label_voxels: dict[int, int]
    """Voxels of each label but 0, before labels were chosen."""
    uri: str


def tumor_mask(
    volume: NiftiVolume, image: Grid, tumor_labels: Sequence[int] | None, uri: str
) -> Mask:
    """The tumor of a mask's file.

    Args:
        volume: of the mask's file.
        image: grid of the image in the archive's orientation. The mask's axes may have another
            order or direction than the image file's; its voxels must lie in the same places.
        tumor_labels: labels that are tumor; None for all but 0.
        uri: of the mask's file.

    Raises:
        RejectError: the mask has labels that are no whole numbers, or lies on another grid.
    """
    reorientation = volume.grid.reorientation_to_archive()
    grid = volume.grid.reoriented(reorientation)
    if grid.shape != image.shape:
        raise RejectError(f"has {_size(grid)} slices, rows and columns, its image {_size(image)}")
    if not grid.agrees_with(image, tolerance_mm=0.1 * min(image.spacing_mm)):
        raise RejectError(
            f"has another position than its image: first voxel at {_origin(grid)} mm, "
            f"that of the image at {_origin(image)} mm"
        )
    whole = whole_labels(volume.voxels)
    labels = count_labels(whole)
    voxels = reorientation.apply(whole)
    tumor = voxels != 0 if tumor_labels is None else np.isin(voxels, tumor_labels)
    return Mask(tumor, labels, uri)


def whole_labels(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The labels without rounding errors: SPM stores 1 as 255 times a slope of 1/255.

    Raises:
        RejectError: a label is no whole number.
    """
    if voxels.dtype.kind != "f":
        return voxels
    whole: npt.NDArray[Any] = np.rint(voxels)
    wrong = np.abs(voxels - whole) > _ROUNDING
    if wrong.any():
        example = voxels[wrong].min()
        raise RejectError(f"a mask holds whole numbers, this one {example:g}: is it an image?")
    return whole


def count_labels(voxels: npt.NDArray[Any]) -> dict[int, int]:
    """Voxels of each label but 0; labels are whole numbers."""
    if voxels.dtype == np.uint8:
        by_label = enumerate(count_values(voxels))
        return {label: int(count) for label, count in by_label if label and count}
    values, counts = np.unique(voxels, return_counts=True)
    return {
        int(value): int(count) for value, count in zip(values, counts, strict=True) if value != 0
    }


def _size(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape))


def _origin(grid: Grid) -> str:
    return ", ".join(f"{mm:.1f}" for mm in grid.affine[:3, 3])
