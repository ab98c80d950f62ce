"""Shape of one series' tumor, from the masks of its slices: components, contact with the image border, jumps."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from segmodel.errors import GeometryError
from segmodel.geometry import MM3_PER_ML

Mask = npt.NDArray[np.bool_]
Masks = Mapping[int, Mask]
"""Slice index to bool mask, (rows, columns); slices without tumor may be left out."""

CONNECTIVITY_26 = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a face, an edge or a corner belong together."""

# Two annotated slices next to each other never look like this, or hardly ever: of the 32 patients of the LGG data set that were
# looked at, one has a pair whose masks overlap by less than a third of the smaller (by 5 %), and in none with 10 or more slices
# of tumor does the area change by more than 48 % of the largest. A ball cut into 10 slices changes by 36 % at most. The Dice of
# two neighbours tells less: it falls to 0.15 where a tumor begins or ends.
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
    """What is taken out of a series' masks after the model."""

    keep_largest: bool
    """Only the largest 3D component stays."""
    min_volume_ml: float | None
    """Components smaller than this go."""


@dataclass(frozen=True)
class Components:
    """The 3D components of a series, in the bounding box of its tumor."""

    labels_dhw: npt.NDArray[np.int32]
    """0: no tumor; n: component n. Slice d of it has the index `first_slice + d`."""
    voxels_n: npt.NDArray[np.int64]
    """Voxels of component n at place n - 1."""
    first_slice: int
    rows: slice
    columns: slice


def measure(masks: Masks, slice_indices: Collection[int]) -> Shape:
    """The shape of one series' tumor.

    Args:
        masks: all of one height and width.
        slice_indices: of all slices that the series has, those without tumor too.
    """
    areas = {index: int(np.count_nonzero(mask)) for index, mask in masks.items()}
    found = components(masks)
    return Shape(
        tumor_voxels=sum(areas.values()),
        slices_with_tumor=sum(area > 0 for area in areas.values()),
        largest_component_voxels=0 if found is None else int(found.voxels_n.max()),
        touches_border=any(touches_border(mask) for mask in masks.values()),
        jumps=tuple(jumps(masks, slice_indices)),
    )


def components(masks: Masks) -> Components | None:
    """Label the 3D components, 26-connected; None without tumor. A slice that is not there counts as one without tumor.

    Source: scipy.ndimage.label, over the bounding box alone.
    """
    tumor = {index: mask for index, mask in masks.items() if mask.any()}
    if not tumor:
        return None
    footprint_hw = np.logical_or.reduce(list(tumor.values()))
    rows, columns = ndimage.find_objects(footprint_hw.astype(np.uint8))[0]
    first = min(tumor)
    box_dhw = np.zeros((max(tumor) - first + 1, rows.stop - rows.start, columns.stop - columns.start), dtype=bool)
    for index, mask in tumor.items():
        box_dhw[index - first] = mask[rows, columns]
    labels_dhw, _ = ndimage.label(box_dhw, structure=CONNECTIVITY_26)
    return Components(labels_dhw, np.bincount(labels_dhw.ravel())[1:], first, rows, columns)


def touches_border(mask_hw: Mask) -> bool:
    """Whether tumor lies in the first or last row or column."""
    return bool(mask_hw[[0, -1]].any() or mask_hw[:, [0, -1]].any())


def jumps(masks: Masks, slice_indices: Collection[int]) -> list[int]:
    """Indices of slices after which, in the next, the mask lies elsewhere, or appears, vanishes or changes its area abruptly.

    Elsewhere: both have at least `MIN_PIXELS_OF_OVERLAP` pixels, and less than `MIN_OVERLAP` of the smaller one is in both.
    Changes abruptly: the areas differ by more than `MAX_AREA_CHANGE` of the series' largest; only in series with tumor in at
    least `MIN_SLICES_OF_AREA_CHANGE` slices, because a tumor of a few slices has to begin and end abruptly.
    """
    areas = {index: int(np.count_nonzero(mask)) for index, mask in masks.items()}
    enough = sum(area > 0 for area in areas.values()) >= MIN_SLICES_OF_AREA_CHANGE
    most = MAX_AREA_CHANGE * max(areas.values(), default=0)
    present = set(slice_indices)
    found = []
    for index in sorted(present):
        if index + 1 not in present:
            continue
        here, there = areas.get(index, 0), areas.get(index + 1, 0)
        smaller = min(here, there)
        moved = smaller >= MIN_PIXELS_OF_OVERLAP and np.count_nonzero(masks[index] & masks[index + 1]) < MIN_OVERLAP * smaller
        if moved or (enough and abs(here - there) > most):
            found.append(index)
    return found


def postprocess(masks: Masks, how: Postprocessing, voxel_mm3: float | None) -> dict[int, Mask]:
    """The masks without the components that `how` takes out.

    Args:
        masks: all of one height and width; no slice between two others is missing.
        how: what goes.
        voxel_mm3: volume of a voxel; not used without `how.min_volume_ml`.

    Raises:
        GeometryError: a smallest volume is given and that of a voxel is not.
    """
    found = components(masks)
    if found is None:
        return dict(masks)
    stays_n = np.ones(len(found.voxels_n), dtype=bool)
    if how.keep_largest:
        stays_n &= np.arange(len(stays_n)) == found.voxels_n.argmax()
    if how.min_volume_ml is not None:
        if voxel_mm3 is None:
            raise GeometryError("components of an unknown volume cannot be compared with a smallest volume")
        smallest, volumes_n = how.min_volume_ml * MM3_PER_ML, found.voxels_n * voxel_mm3
        # A component of exactly the smallest volume stays, whatever the rounding of a float32 spacing.
        stays_n &= (volumes_n > smallest) | np.isclose(volumes_n, smallest)
    tumor_dhw = np.concatenate([[False], stays_n])[found.labels_dhw]
    kept = {}
    for index, mask in masks.items():
        kept[index] = np.zeros_like(mask)
        if mask.any():
            kept[index][found.rows, found.columns] = tumor_dhw[index - found.first_slice]
    return kept
