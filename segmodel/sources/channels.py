"""The channels of a series: all sequences, resampled to the grid of the base sequence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from segmodel.core import schema
from segmodel.core.grid import Grid
from segmodel.sources.volume import Channel, resample

LEAST_COVERED = 0.5
"""A sequence that covers a smaller share of the base's voxels is not used."""


@dataclass(frozen=True)
class SourceImage:
    """One sequence of a study, with axes in the archive's order and orientation."""

    voxels: npt.NDArray[Any]
    """(slices, rows, columns); any kind of number."""
    grid: Grid
    source_uri: str
    because: str
    """Why it was taken for this sequence."""
    space: str | None = None
    """Name of the coordinate system: only images in the same one can be overlaid."""
    source_series_uid: str | None = None
    description: str | None = None


def assemble(
    names: Sequence[str], base_name: str, base: SourceImage, others: Mapping[str, SourceImage | str]
) -> tuple[Channel, ...]:
    """The channels `names`, all on the grid of the base.

    A sequence that is missing, or cannot be laid over the base, is replaced by the base, as in the
    LGG data set; the channel's `because` says so.

    Args:
        names: of the channels, in the order of the archive.
        base_name: of the sequence that gives the grid.
        base: that sequence.
        others: the other sequences, or the reason why one is missing.
    """
    channels = []
    for name in names:
        found = base if name == base_name else others.get(name, "no such image in this study")
        laid_over = found if isinstance(found, str) else _on_grid_of(base, found)
        if isinstance(laid_over, str):
            because = f"{base_name} {schema.STANDS_IN}: {laid_over}"
            channels.append(_channel(name, base, base.voxels, because))
        else:
            image, voxels, because = laid_over
            channels.append(_channel(name, image, voxels, because))
    return tuple(channels)


def _channel(name: str, image: SourceImage, voxels: npt.NDArray[Any], because: str) -> Channel:
    return Channel(
        name, voxels, image.source_uri, because, image.source_series_uid, image.description
    )


def _on_grid_of(
    base: SourceImage, image: SourceImage
) -> tuple[SourceImage, npt.NDArray[Any], str] | str:
    """The image resampled to the base's grid, and how, or the reason why it cannot be."""
    if image.grid.agrees_with(base.grid, tolerance_mm=0.1 * min(base.grid.spacing_mm)):
        return image, image.voxels, image.because
    if image.space != base.space:
        return f"its coordinates are others ({image.space} and {base.space}): {image.source_uri}"
    voxels, covered = resample(image.voxels, image.grid, base.grid)
    if covered < LEAST_COVERED:
        return f"it covers {covered:.0%} of the slices only: {image.source_uri}"
    return image, voxels, f"{image.because}; interpolated to this grid, {covered:.0%} covered"
