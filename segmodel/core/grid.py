"""Where the voxels of a volume lie in the patient.

Positions are in millimetres in the coordinates of DICOM, LPS: x grows to the patient's left, y to
the back (posterior), z to the head (superior). NIfTI's RAS has x and y mirrored.

The archive stores every volume as axes (slice, row, column) that run to superior, posterior and
left: axial slices from the feet upwards, the forehead at the top, the patient's right on the left
side of the picture. That is how the LGG data set shows its slices.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

ARCHIVE_AXES = "SPL"
"""Directions of the archive's axes (slice, row, column)."""

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Converts an affine from RAS to LPS, or back, when multiplied from the left."""

_CORNERS = np.array([(i, j, k, 1) for i in (0, 1) for j in (0, 1) for k in (0, 1)])
"""Corners of a grid of 2 x 2 x 2 voxels, in homogeneous coordinates."""

_PLANES = {
    "S": "axial",
    "I": "axial",
    "A": "coronal",
    "P": "coronal",
    "L": "sagittal",
    "R": "sagittal",
}


@dataclass(frozen=True)
class Reorientation:
    """How the axes of a source became the archive's: exchanged or mirrored, never interpolated."""

    axes: tuple[int, int, int]
    """For each axis of the source, the archive's axis: 0 slice, 1 row, 2 column."""
    mirrored: tuple[bool, bool, bool]
    """For each axis of the source, whether it runs the other way in the archive."""

    def apply(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of the voxels with axes (slice, row, column); further axes stay last."""
        return np.moveaxis(np.flip(voxels, self._flipped), (0, 1, 2), self.axes)

    def undo(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of voxels with axes (slice, row, column), with the axes of the source."""
        return np.flip(np.moveaxis(voxels, self.axes, (0, 1, 2)), self._flipped)

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(3) if self.mirrored[axis])


@dataclass(frozen=True)
class Grid:
    """The positions of a volume's voxels."""

    shape: tuple[int, int, int]
    """Voxels along each axis."""
    affine: npt.NDArray[np.float64]
    """(4, 4), from (i, j, k, 1), indices from 0, to (x, y, z, 1) of a voxel's centre, LPS mm."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between the centres of neighbours along each axis."""
        a, b, c = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return a, b, c

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel; of a sheared grid, that of the parallelepiped."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @cached_property
    def axis_codes(self) -> str:
        """The nearest anatomical direction of each axis, as in `LPS`."""
        from nibabel.orientations import aff2axcodes

        return "".join(aff2axcodes(RAS_TO_LPS @ self.affine))

    @property
    def shear_degrees(self) -> float:
        """The largest deviation of an angle between two axes from 90 degrees, as by gantry tilt."""
        unit = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        cosines = np.abs((unit.T @ unit)[np.triu_indices(3, 1)])
        return float(np.degrees(np.arcsin(min(cosines.max(), 1.0))))

    def plane(self, slice_axis: int) -> str:
        """The plane of slices stacked along an axis: `axial`, `coronal` or `sagittal`."""
        return _PLANES[self.axis_codes[slice_axis]]

    def reorientation_to_archive(self) -> Reorientation:
        """How to exchange and mirror the axes so that they come closest to the archive's."""
        from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

        own = io_orientation(RAS_TO_LPS @ self.affine)
        change = ornt_transform(own, axcodes2ornt(ARCHIVE_AXES))
        i, j, k = (int(axis) for axis in change[:, 0])
        a, b, c = (bool(sign < 0) for sign in change[:, 1])
        return Reorientation((i, j, k), (a, b, c))

    def reoriented(self, reorientation: Reorientation) -> "Grid":
        """The grid of the reoriented voxels: each stays where it is in the patient."""
        from_source = np.zeros((4, 4))  # archive indices to source indices
        from_source[3, 3] = 1.0
        shape = [0, 0, 0]
        for axis, (becomes, mirrored) in enumerate(
            zip(reorientation.axes, reorientation.mirrored, strict=True)
        ):
            shape[becomes] = self.shape[axis]
            from_source[axis, becomes] = -1.0 if mirrored else 1.0
            from_source[axis, 3] = self.shape[axis] - 1 if mirrored else 0.0
        return Grid((shape[0], shape[1], shape[2]), self.affine @ from_source)

    def undo_reorientation(self, reorientation: Reorientation) -> "Grid":
        """The source's grid, from that of the reoriented voxels: the inverse of `reoriented`."""
        to_archive = np.zeros((4, 4))  # source indices to archive indices
        to_archive[3, 3] = 1.0
        for axis, (becomes, mirrored) in enumerate(
            zip(reorientation.axes, reorientation.mirrored, strict=True)
        ):
            to_archive[becomes, axis] = -1.0 if mirrored else 1.0
            to_archive[becomes, 3] = self.shape[becomes] - 1 if mirrored else 0.0
        i, j, k = (self.shape[axis] for axis in reorientation.axes)
        return Grid((i, j, k), self.affine @ to_archive)

    def agrees_with(self, other: "Grid", tolerance_mm: float = 0.01) -> bool:
        """Whether the shapes are equal and all corners are at most `tolerance_mm` apart."""
        if self.shape != other.shape:
            return False
        corners = _CORNERS * (*(size - 1 for size in self.shape), 1)
        apart = np.linalg.norm((corners @ (self.affine - other.affine).T)[:, :3], axis=1)
        return bool(apart.max() <= tolerance_mm)
