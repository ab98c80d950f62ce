"""Shape of one series' tumor from its masks: components, contact with the image border, jumps."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from segmodel.core.errors import GeometryError
from segmodel.core.geometry import MM3_PER_ML

Mask = npt.NDArray[np.bool_]
Masks = Mapping[int, Mask]
"""Slice index to bool mask, (rows, columns); slices without tumor may be left out."""

CONNECTIVITY_26 = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a face, an edge or a corner belong together."""

# Neighbouring annotated slices hardly ever look like this. Measured on 32 patients of the LGG data
# set: one has a pair whose masks overlap by less than a third of the smaller (by 5 %). In none with
# 10 or more slices of tumor does the area change by more than 48 % of the largest; a ball cut into
# 10 slices changes by 36 % at most. The Dice of two neighbours tells less: it falls to 0.15 where a
# tumor begins or ends.
MIN_OVERLAP = 1 / 3
MAX_AREA_CHANGE = 0.5
MIN_SLICES_OF_AREA_CHANGE = 10
MIN_PIXELS_OF_OVERLAP = 20


@dataclass(frozen=True)
class Shape:
    """What the masks of one series look like together."""

    tumor_voxels: int
    slices_with_tumor: int
    largest_component_voxels: int
    """Voxels of the largest 3D component, 26-connected; 0 without tumor."""
    touches_border: bool
    """Tumor lies in the first or last row or column of a slice."""
    jumps: tuple[int, ...]
    """Indices of slices between which and the next the mask jumps, in order."""


@dataclass(frozen=True)
class Postprocessing:
    """Which components are removed from the masks of a series after the model."""

    keep_largest: bool
    """Only the largest 3D component stays."""
    min_volume_ml: float | None
    """Components smaller than this go."""


@dataclass(frozen=True)
class Box:
    """The tumor of a series, cut out of its slices."""

    tumor_dhw: npt.NDArray[np.bool_]
    """Slices with tumor in their order; one empty slice stands for all between two of them."""
    indices_d: list[int]
    """Slice index of each place. Of an empty one: that of the last slice before the next tumor."""
    rows: slice
    columns: slice
    touches_border: bool
    """Tumor lies in the first or last row or column of a slice."""


@dataclass(frozen=True)
class Components:
    """The 3D components of a series' tumor."""

    labels_dhw: npt.NDArray[np.int32]
    """Of the voxels of a `Box`. 0: no tumor; n: component n."""
    voxels_n: npt.NDArray[np.int64]
    """Voxels of component n at place n - 1."""


def measure(masks: Masks, slice_indices: Collection[int]) -> Shape:
    """The shape of one series' tumor.

    Args:
        masks: all of one height and width.
        slice_indices: of all slices that the series has, those without tumor too.
    """
    box = cut_out(masks)
    if box is None:
        return Shape(0, 0, 0, touches_border=False, jumps=())
    areas_d = np.count_nonzero(box.tumor_dhw, axis=(1, 2))
    return Shape(
        tumor_voxels=int(areas_d.sum()),
        slices_with_tumor=int(np.count_nonzero(areas_d)),
        largest_component_voxels=int(components(box).voxels_n.max()),
        touches_border=box.touches_border,
        jumps=tuple(jumps(box, slice_indices)),
    )


def cut_out(masks: Masks) -> Box | None:
    """The bounding box of all tumor; None without any."""
    if not masks:
        return None
    footprint_hw: Mask = functools.reduce(np.logical_or, masks.values())
    if not footprint_hw.any():
        return None
    rows, columns = ndimage.find_objects(footprint_hw.astype(np.uint8))[0]
    height, width = footprint_hw.shape
    cut = {index: mask[rows, columns] for index, mask in masks.items()}
    tumor = {index: mask for index, mask in cut.items() if mask.any()}
    indices_d: list[int] = []
    for index in sorted(tumor):
        if indices_d and index - indices_d[-1] > 1:
            indices_d.append(index - 1)
        indices_d.append(index)
    tumor_dhw = np.zeros(
        (len(indices_d), rows.stop - rows.start, columns.stop - columns.start), dtype=bool
    )
    for place, index in enumerate(indices_d):
        if index in tumor:
            tumor_dhw[place] = tumor[index]
    touches = rows.start == 0 or rows.stop == height or columns.start == 0 or columns.stop == width
    return Box(tumor_dhw, indices_d, rows, columns, touches)


def components(box: Box) -> Components:
    """Label the 3D components, 26-connected. Source: scipy.ndimage.label."""
    labels_dhw, _ = ndimage.label(box.tumor_dhw, structure=CONNECTIVITY_26)
    return Components(labels_dhw, np.bincount(labels_dhw.ravel())[1:])


def jumps(box: Box, slice_indices: Collection[int]) -> list[int]:
    """Indices of slices after which the mask changes abruptly.

    Either the mask moves: both have at least `MIN_PIXELS_OF_OVERLAP` pixels, and less than
    `MIN_OVERLAP` of the smaller one is in both. Or its area changes abruptly: by more than
    `MAX_AREA_CHANGE` of the series' largest. This counts only in series with tumor in at least
    `MIN_SLICES_OF_AREA_CHANGE` slices: a tumor of a few slices has to begin and end abruptly.
    """
    # An empty slice at either end: tumor may appear after the first one and vanish in the last one.
    around_dhw = np.pad(box.tumor_dhw, ((1, 1), (0, 0), (0, 0)))
    areas_d = np.count_nonzero(around_dhw, axis=(1, 2))
    smaller_d = np.minimum(areas_d[:-1], areas_d[1:])
    shared_d = np.count_nonzero(around_dhw[:-1] & around_dhw[1:], axis=(1, 2))
    found_d = (smaller_d >= MIN_PIXELS_OF_OVERLAP) & (shared_d < MIN_OVERLAP * smaller_d)
    if np.count_nonzero(areas_d) >= MIN_SLICES_OF_AREA_CHANGE:
        found_d |= abs(np.diff(areas_d)) > MAX_AREA_CHANGE * areas_d.max()
    present = set(slice_indices)
    before_d = [box.indices_d[0] - 1, *box.indices_d]
    here = [before_d[place] for place in np.flatnonzero(found_d)]
    return [index for index in here if index in present and index + 1 in present]


def postprocess(masks: Masks, how: Postprocessing, voxel_mm3: float | None) -> dict[int, Mask]:
    """The masks without the components that `how` takes out.

    Args:
        masks: all of one height and width; no slice between two others is missing.
        how: what goes.
        voxel_mm3: volume of a voxel; not used without `how.min_volume_ml`.

    Raises:
        GeometryError: a smallest volume is given and that of a voxel is not.
    """
    box = cut_out(masks)
    if box is None:
        return dict(masks)
    found = components(box)
    stays_n = np.ones(len(found.voxels_n), dtype=bool)
    if how.keep_largest:
        stays_n &= np.arange(len(stays_n)) == found.voxels_n.argmax()
    if how.min_volume_ml is not None:
        if voxel_mm3 is None:
            raise GeometryError(
                "components of an unknown volume cannot be compared with a smallest volume"
            )
        smallest, volumes_n = how.min_volume_ml * MM3_PER_ML, found.voxels_n * voxel_mm3
        # A component of exactly the smallest volume stays, whatever the rounding of the spacing.
        stays_n &= (volumes_n > smallest) | np.isclose(volumes_n, smallest)
    tumor_dhw = np.concatenate([[False], stays_n])[found.labels_dhw]
    places = {index: place for place, index in enumerate(box.indices_d)}
    kept = {}
    for index, mask in masks.items():
        kept[index] = np.zeros_like(mask)
        if mask.any():
            kept[index][box.rows, box.columns] = tumor_dhw[places[index]]
    return kept
