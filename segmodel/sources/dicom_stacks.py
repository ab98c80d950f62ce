"""Sorts the images of one DICOM series into stacks: their order, spacing and grid.

Order and distance come from ImagePositionPatient along the normal of the slices, never from file
names, InstanceNumber, SliceLocation, SliceThickness or SpacingBetweenSlices.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segmodel.core.grid import Grid, Reorientation
from segmodel.core.source_files import SourceFiles, hash_of
from segmodel.sources.base import RejectError
from segmodel.sources.dicom_image import ImageHeader
from segmodel.sources.volume import MAX_VOXELS

SAME_PLACE_MM = 0.01
"""Images whose positions differ by less count as at the same position."""
_DECIMALS = 3
"""Of direction cosines and pixel spacings that are compared."""

_SPLITTERS: tuple[tuple[str, Callable[[ImageHeader], Any]], ...] = (
    ("echo", lambda image: (image.echo_number, image.echo_time)),
    ("b-value", lambda image: image.b_value),
    ("temporal position", lambda image: image.temporal_position),
    ("acquisition", lambda image: image.acquisition),
    ("image type", lambda image: image.image_type),
    ("trigger time", lambda image: image.trigger_time),
)
"""What may distinguish images at the same position, in the order in which it is tried."""


@dataclass(frozen=True)
class Stack:
    """Images of one series that lie one above another."""

    images: tuple[ImageHeader, ...]
    """In the order of their positions along the slice normal."""
    grid: Grid
    """Axes (slice, row, column) as in the files; slices that are missing between others count."""
    slice_index: tuple[int, ...]
    """Of each image, from 0 along the grid; a number that is left out is a missing slice."""
    part: str
    """Tells it from other stacks of the series, as `echo 2`; empty if it is the only one."""
    no_volume_reason: str | None
    """Why there is no distance between slices; then the grid's is the mean step."""

    @property
    def first(self) -> ImageHeader:
        """The image of the lowest position, for what all images share."""
        return self.images[0]

    @property
    def series_id(self) -> str:
        """In the archive."""
        return self.first.series_uid + (f"_{self.part}" if self.part else "")

    def source_files(self) -> SourceFiles:
        """What it was made from: its images, whatever their files are called."""
        images = hash_of({image.sop_instance_uid: str(image.frame) for image in self.images})
        return SourceFiles(len(self.images), images, images)


def stacks_of(images: Sequence[ImageHeader]) -> tuple[list[Stack], list[str]]:
    """Split the images of one series into stacks.

    Args:
        images: of one series, at least one, in any order.

    Returns:
        The stacks, and why images that belong to none were left out.
    """
    problems = []
    placed = [image for image in images if image.orientation and image.position and image.spacing]
    if len(placed) < len(images):
        problems.append(
            f"{len(images) - len(placed)} images without position, orientation or pixel spacing"
        )
    once = list({(image.sop_instance_uid, image.frame): image for image in placed}.values())
    groups = _group(once, _plane)
    stacks = []
    for group in groups:
        for part, members in _split(group, 0, ""):
            name = part if len(groups) == 1 else f"{part} plane of {len(members)} images".strip()
            try:
                stacks.append(_stack(members, name))
            except RejectError as error:
                problems.append(str(error))
    return stacks, problems


def _group(
    images: Iterable[ImageHeader], key: Callable[[ImageHeader], Any]
) -> list[list[ImageHeader]]:
    groups: dict[Any, list[ImageHeader]] = defaultdict(list)
    for image in images:
        groups[key(image)].append(image)
    return list(groups.values())


def _plane(image: ImageHeader) -> tuple[Any, ...]:
    """Only images that agree in this can lie on one grid."""
    # + 0.0 makes 0.0 of -0.0
    cosines = tuple(round(value, _DECIMALS) + 0.0 for value in image.orientation or ())
    spacing = tuple(round(value, _DECIMALS) for value in image.spacing or ())
    return cosines, spacing, image.rows, image.columns, image.frame_of_reference


def _split(images: list[ImageHeader], level: int, part: str) -> list[tuple[str, list[ImageHeader]]]:
    """Groups without two images at one position, as far as the headers distinguish images."""
    if level == len(_SPLITTERS) or not _repeats(_along_normal(images)):
        return [(part, images)]
    name, key = _SPLITTERS[level]
    groups = _group(images, key)
    if len(groups) == 1:
        return _split(images, level + 1, part)
    found = []
    for group in groups:
        value = key(group[0])
        shown = value[-1] if isinstance(value, tuple) and value else value
        found += _split(group, level + 1, f"{part} {name} {shown}".strip())
    return found


def _along_normal(images: Sequence[ImageHeader]) -> npt.NDArray[np.float64]:
    """Position of each image along the slice normal, mm."""
    positions = np.array([image.position for image in images], np.float64)
    return np.asarray(positions @ _normal(images[0]), np.float64)


def _normal(image: ImageHeader) -> npt.NDArray[np.float64]:
    cosines = np.array(image.orientation, np.float64)
    return np.cross(cosines[:3], cosines[3:])


def _repeats(positions: npt.NDArray[np.float64]) -> bool:
    return bool((np.diff(np.sort(positions)) < SAME_PLACE_MM).any())


def _stack(images: list[ImageHeader], part: str) -> Stack:
    along = _along_normal(images)
    if _repeats(along):
        raise RejectError(
            f"{len(images)} images share positions; neither echo, b-value, time nor acquisition "
            "distinguishes them"
        )
    ordered = [images[number] for number in np.argsort(along)]
    along = np.sort(along)
    step, index, reason = _steps(ordered, along)
    return Stack(tuple(ordered), _grid(ordered, index, step, reason), tuple(index), part, reason)


def _steps(
    ordered: Sequence[ImageHeader], along: npt.NDArray[np.float64]
) -> tuple[float | None, list[int], str | None]:
    """Distance between slices, the place of each image in steps of it, and why there is none."""
    from highdicom.spatial import get_volume_positions

    if len(ordered) == 1:
        return None, [0], "one slice only: no distance to another"
    positions = [image.position or () for image in ordered]
    orientation = ordered[0].orientation or ()
    step, _ = get_volume_positions(positions, orientation, allow_missing_positions=True)
    if step is not None:
        return float(step), np.rint((along - along[0]) / step).astype(int).tolist(), None
    return None, list(range(len(ordered))), _why_uneven(ordered, along)


def _why_uneven(ordered: Sequence[ImageHeader], along: npt.NDArray[np.float64]) -> str:
    first, last = (np.array(ordered[number].position, np.float64) for number in (0, -1))
    apart = last - first
    sideways = np.degrees(np.arccos(min(1.0, (along[-1] - along[0]) / np.linalg.norm(apart))))
    if sideways > 1:
        return f"the stack is sheared by {sideways:.1f} degrees (gantry tilt)"
    steps = np.diff(along)
    return f"uneven distances between slices: {steps.min():.2f} to {steps.max():.2f} mm"


def _grid(
    ordered: Sequence[ImageHeader], index: Sequence[int], step: float | None, reason: str | None
) -> Grid:
    """(slice, row, column) to LPS mm."""
    first = ordered[0]
    cosines = np.array(first.orientation, np.float64)
    row_mm, column_mm = first.spacing or (np.nan, np.nan)
    affine = np.eye(4)
    if step is not None:
        affine[:3, 0] = _normal(first) * step
    elif len(ordered) > 1:  # the mean step shows where the stack lies; volumes do not use it
        apart = np.array(ordered[-1].position) - np.array(first.position)
        affine[:3, 0] = apart / (len(ordered) - 1)
    else:
        affine[:3, 0] = _normal(first)
    affine[:3, 1] = cosines[3:] * row_mm  # from row to row runs along a column
    affine[:3, 2] = cosines[:3] * column_mm
    affine[:3, 3] = first.position
    return Grid((max(index) + 1, first.rows, first.columns), affine)


def check_size(stack: Stack) -> None:
    """Raise RejectError if a stack, by its headers, is too large for the memory."""
    if np.prod(stack.grid.shape, dtype=np.float64) > MAX_VOXELS:
        size = " x ".join(map(str, stack.grid.shape))
        raise RejectError(
            f"its {len(stack.images)} images would make {size} voxels, missing slices included; "
            f"more than {MAX_VOXELS:,} are not read"
        )


def archive_slices(
    stack: Stack, count: int, reorientation: Reorientation
) -> list[tuple[int, ImageHeader | None]]:
    """Numbers, from 0, of the archive's slices that exist, and the image of each.

    Args:
        stack: the images.
        count: slices of the archive's grid.
        reorientation: of the stack to the archive. If it changes the slice axis, no slice is an
            image of the stack: all exist, and their images are None.
    """
    if reorientation.axes[0] != 0:
        return [(number, None) for number in range(count)]
    last = stack.grid.shape[0] - 1
    placed = zip(stack.slice_index, stack.images, strict=True)
    mirrored = reorientation.mirrored[0]
    slices = [(last - number if mirrored else number, image) for number, image in placed]
    return sorted(slices, key=lambda slice_: slice_[0])
