"""A series as NIfTI files: its mask, and the channels of the archive, on the grid of the source."""

from typing import Any

import numpy as np
import numpy.typing as npt

from segmodel.archive import slice_format
from segmodel.core.grid import RAS_TO_LPS
from segmodel.export.file_names import distinct
from segmodel.export.records import RESEARCH_USE, SeriesFiles, SeriesInput, Target
from segmodel.export.series_mask import SeriesGrid
from segmodel.sources.base import RejectError

ALIGNED = 2
"""sform and qform code: the coordinates are those of another image, the source."""
MAX_SHEAR_DEGREES = 0.01
"""Of a grid that a qform, which holds no shear, can stand for."""


def encode(series: SeriesInput, target: Target) -> SeriesFiles:
    """The mask of a series and, if they are wanted, its images.

    Raises:
        RejectError: the slices of a DICOM series have no single distance.
    """
    known, found = series.known, series.found
    if known is not None and known["source_format"] == "dicom" and known["no_volume_reason"]:
        raise RejectError(
            f"{known['no_volume_reason']}; a NIfTI file has one distance between slices"
        )
    unknown = len(found.unknown)
    # Whoever collects *_mask.nii.gz must not take unknown slices for slices without tumor.
    mask = f"{series.stem}_{'mask_incomplete' if unknown else 'mask'}.nii.gz"
    contents = {mask: to_nifti(found.mask_dhw.astype(np.uint8), found.series_grid, unknown)}
    if target.with_images:
        images = _images(series, len(target.channels))
        for number, name in enumerate(distinct(target.channels)):
            file = f"{series.stem}_image-{name}.nii.gz"
            contents[file] = to_nifti(images[..., number], found.series_grid, unknown)
    return SeriesFiles(mask, contents)


def _images(series: SeriesInput, channels: int) -> npt.NDArray[np.uint8]:
    """(slices, rows, columns, channels) of the grid; zeros where a slice is not there."""
    series_grid, rows = series.found.series_grid, series.rows
    depth, height, width = series_grid.grid.shape
    images = np.zeros((depth, height, width, channels), np.uint8)
    for index, pixels in zip(rows["slice_index"].to_pylist(), rows["pixels"], strict=True):
        number = index - series_grid.first_index
        images[number] = slice_format.image(pixels, height, width, channels)
    return images


def to_nifti(
    voxels_dhw: npt.NDArray[np.uint8], series_grid: SeriesGrid, unknown_slices: int = 0
) -> bytes:
    """A `.nii.gz` file of voxels, in the axes of their source.

    The same voxels give the same bytes.

    Args:
        voxels_dhw: (slices, rows, columns) on the grid of `series_grid`.
        series_grid: of their series.
        unknown_slices: whose zeros mean nothing; the header's description says how many.
    """
    from isal import igzip
    from nibabel.nifti1 import Nifti1Image

    affine = RAS_TO_LPS @ series_grid.source_grid.affine
    voxels = np.ascontiguousarray(series_grid.reorientation.undo(voxels_dhw))
    image: Any = Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, ALIGNED)
    sheared = series_grid.grid.shear_degrees > MAX_SHEAR_DEGREES
    image.set_qform(affine, 0 if sheared else ALIGNED)
    some = f"; {unknown_slices} slices without a mask" if unknown_slices else ""
    image.header["descrip"] = f"{RESEARCH_USE}{some}".encode()
    return bytes(igzip.compress(image.to_bytes(), mtime=0))
