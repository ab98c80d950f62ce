"""Converts volumes to rows of the archive: intensity windows, resampling, slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segmodel.core import schema
from segmodel.core.grid import Grid, Reorientation
from segmodel.core.source_files import SourceFiles
from segmodel.sources.base import files_columns

THICK = 1.5
"""A stack is thick-sliced from this ratio of its greatest to its smallest spacing."""

MAX_VOXELS = 2**28
"""Most voxels of one sequence, so that a wrong header cannot fill the memory."""

_PIECE = 2**19

Percentiles = tuple[float, float]


@dataclass(frozen=True)
class Channel:
    """What one channel of a series shows, on the grid of the series."""

    name: str
    voxels: npt.NDArray[Any]
    """(slices, rows, columns), in the units of the source; any kind of number."""
    source_uri: str
    because: str
    """Why this image was taken, in words; if the sequence is missing, what replaces it."""
    source_series_uid: str | None = None
    description: str | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series, with axes (slice, row, column) in the archive's orientation."""

    patient_id: str
    series_id: str
    study_id: str | None = None
    study_date: date | None = None
    grid: Grid
    channels: tuple[Channel, ...]
    mask: npt.NDArray[np.bool_] | None
    """(slices, rows, columns); None without an annotation."""
    slice_index: Sequence[int]
    """Position of each slice, from 1; a number that is left out is a missing slice."""
    slice_uris: Sequence[str]
    """Source of each slice of the channel that gave the grid."""
    sop_instance_uids: Sequence[str | None] | None = None
    frame_of_reference_uid: str | None = None
    source_format: str
    source_grid: Grid
    reorientation: Reorientation
    files: SourceFiles | None = None
    """What the series was read from."""
    mask_uri: str | None = None
    label_voxels: dict[int, int] = field(default_factory=dict)
    """Voxels of each label of the mask, before labels were chosen."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the geometry."""
    no_volume_reason: str | None = None
    """Why the distance between slices has no single value; None where it has."""


def thick_plane(grid: Grid, reorientation: Reorientation) -> str | None:
    """The plane of the source's slices where they are thick and not axial, otherwise None."""
    spacing = grid.spacing_mm
    thickest = int(np.argmax(spacing))
    thick = spacing[thickest] >= THICK * min(spacing)
    return grid.plane(thickest) if thick and reorientation.axes[thickest] != 0 else None


def intensity_window(voxels: npt.NDArray[Any], percentiles: Percentiles) -> tuple[float, float]:
    """The intensities that become 0 and 255: two percentiles of the voxels that are not 0.

    Percentiles between two voxels are interpolated linearly.

    Returns:
        (low, high), equal where the image has one intensity only.
    """
    total = int(np.count_nonzero(voxels))
    if total == 0:
        return 0.0, 0.0
    positions = [(total - 1) * percentile / 100 for percentile in percentiles]
    ranks = sorted({min(int(place) + n, total - 1) for place in positions for n in (0, 1)})
    ranked = _ranked_16_bit if voxels.dtype in (np.int16, np.uint16) else _ranked
    found = dict(zip(ranks, ranked(voxels, ranks), strict=True))
    low, high = (_interpolated(found, place) for place in positions)
    return low, high


def _interpolated(found: Mapping[int, float], place: float) -> float:
    rank = int(place)
    below, above = found[rank], found.get(rank + 1, found[rank])
    return float(np.float32(below + (above - below) * (place - rank)))


def _ranked(voxels: npt.NDArray[Any], ranks: Sequence[int]) -> list[float]:
    """The values of these ranks, from 0, among the voxels that are not 0."""
    inside = np.partition(voxels[voxels != 0], ranks)
    return [float(inside[rank]) for rank in ranks]


def _ranked_16_bit(voxels: npt.NDArray[Any], ranks: Sequence[int]) -> list[float]:
    """`_ranked` for 16-bit voxels, by counting: several times as fast."""
    counts = count_values(np.ascontiguousarray(voxels).view(np.uint16))
    counts[0] = 0
    stored = np.flatnonzero(counts)
    values = stored.astype(np.uint16).view(voxels.dtype)
    order = np.argsort(values)
    places = np.searchsorted(np.cumsum(counts[stored][order]), ranks, side="right")
    return [float(value) for value in values[order][places]]


def count_values(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Count each value of an unsigned type, piece by piece, so that no large copy is made."""
    flat = values.ravel(order="K")
    counts = np.zeros(int(np.iinfo(values.dtype).max) + 1, np.int64)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        inside = piece[piece != 0]  # most voxels of a head are 0, which one comparison tells
        found = np.bincount(inside)
        counts[: found.size] += found
        counts[0] += piece.size - inside.size
    return counts


def scale_into(
    out: npt.NDArray[np.uint8], voxels: npt.NDArray[Any], window: tuple[float, float]
) -> None:
    """Scale the window's intensities to 0 … 255 and clip others; all 0 if the window is empty.

    Args:
        out: of the shape of `voxels`, is filled.
        voxels: any kind of number.
        window: the intensities that become 0 and 255.
    """
    low, high = window
    if high <= low:
        out[...] = 0
        return
    scale = np.float32(255.0 / (high - low))
    for plane, scaled in zip(voxels, out, strict=True):  # one slice fits in the cache
        values = plane.astype(np.float32)
        values -= np.float32(low)
        values *= scale
        np.clip(values, 0, 255, out=values)
        scaled[...] = np.rint(values, out=values)


def resample(
    voxels: npt.NDArray[Any], grid: Grid, target: Grid
) -> tuple[npt.NDArray[np.float32], float]:
    """Trilinear interpolation at the voxels of another grid; 0 outside the image.

    Args:
        voxels: on `grid`.
        grid: of the image.
        target: where values are wanted; both lie in the same patient coordinates.

    Returns:
        The values on `target`, and the share of its voxels that lie inside the image.
    """
    from scipy.ndimage import affine_transform

    to_source = np.linalg.inv(grid.affine) @ target.affine
    values = affine_transform(
        np.asarray(voxels, np.float32), to_source, output_shape=target.shape, order=1, cval=0.0
    )
    return values, _covered(to_source, grid.shape, target.shape)


def _covered(
    to_source: npt.NDArray[np.float64], source: Sequence[int], target: Sequence[int]
) -> float:
    """Share of the target's voxel centres within half a voxel of the source's box."""
    axes = [np.arange(size, dtype=np.float64) for size in target]
    inside = np.ones(tuple(target), bool)
    for row, size in zip(to_source[:3], source, strict=True):
        along = [row[axis] * axes[axis] for axis in range(3)]
        position = along[0][:, None, None] + along[1][None, :, None] + along[2] + row[3]
        inside &= (position >= -0.5) & (position <= size - 0.5)
    return float(inside.mean())


def scaling_text(percentiles: Percentiles) -> str:
    """What `to_tables` does to intensities, in words for archive.json."""
    low, high = percentiles
    return f"percentiles {low:g} and {high:g} of each sequence's non-zero voxels to 0 and 255"


def to_tables(series: Series, percentiles: Percentiles) -> tuple[pa.Table, pa.Table]:
    """The rows of one series.

    Args:
        series: with at least one channel and one slice.
        percentiles: of each channel's non-zero voxels, that become 0 and 255.

    Returns:
        `schema.ARCHIVE`, one row a slice, and `schema.ARCHIVE_SERIES`, one row.
    """
    windows = [intensity_window(channel.voxels, percentiles) for channel in series.channels]
    pixels_dhwc = np.empty((*series.channels[0].voxels.shape, len(windows)), np.uint8)
    for number, (channel, window) in enumerate(zip(series.channels, windows, strict=True)):
        scale_into(pixels_dhwc[..., number], channel.voxels, window)
    return _slices(series, pixels_dhwc), _series_row(series, windows)


def _slices(series: Series, pixels_dhwc: npt.NDArray[np.uint8]) -> pa.Table:
    count, height, width, _ = pixels_dhwc.shape
    slice_mm, row_mm, column_mm = series.grid.spacing_mm
    owner = series.patient_id
    stem = f"{owner}_" if series.series_id == owner else f"{owner}/{series.series_id}/"
    masks = None if series.mask is None else series.mask.astype(np.uint8)
    return pa.table(
        {
            "slice_id": [f"{stem}{index}" for index in series.slice_index],
            "patient_id": [owner] * count,
            "series_id": [series.series_id] * count,
            "slice_index": series.slice_index,
            "height": [height] * count,
            "width": [width] * count,
            "pixels": _binary(pixels_dhwc),
            "mask": [None] * count if masks is None else _binary(masks),
            "row_spacing_mm": [row_mm] * count,
            "column_spacing_mm": [column_mm] * count,
            "slice_spacing_mm": [None if series.no_volume_reason else slice_mm] * count,
            "source_uri": series.slice_uris,
            "sop_instance_uid": series.sop_instance_uids or [None] * count,
        },
        schema=schema.ARCHIVE,
    )


def _binary(values: npt.NDArray[np.uint8]) -> pa.Array | list[bytes]:
    """A binary value for each item along the first axis, without copies of them."""
    if values.nbytes >= 2**31:  # what an array's offsets can tell
        return [item.tobytes() for item in values]
    values = np.ascontiguousarray(values)
    size = values.nbytes // len(values)
    offsets = np.arange(0, values.nbytes + 1, size, dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)


def _series_row(series: Series, windows: Sequence[tuple[float, float]]) -> pa.Table:
    channels = [
        {
            "name": channel.name,
            "source_uri": channel.source_uri,
            "source_series_uid": channel.source_series_uid,
            "description": channel.description,
            "because": channel.because,
            "window_low": low,
            "window_high": high,
        }
        for channel, (low, high) in zip(series.channels, windows, strict=True)
    ]
    row = {
        "patient_id": series.patient_id,
        "series_id": series.series_id,
        "study_id": series.study_id,
        "study_date": series.study_date,
        "slices": len(series.slice_index),
        "affine": series.grid.affine.ravel().tolist(),
        "frame_of_reference_uid": series.frame_of_reference_uid,
        "source_format": series.source_format,
        "source_shape": list(series.source_grid.shape),
        "source_axes": series.source_grid.axis_codes,
        "turn_axes": list(series.reorientation.axes),
        "turn_mirrored": list(series.reorientation.mirrored),
        "channels": channels,
        **files_columns(series.files),
        "mask_uri": series.mask_uri,
        "label_voxels": list(series.label_voxels.items()),
        "notes": list(series.notes),
        "no_volume_reason": series.no_volume_reason,
    }
    return pa.Table.from_pylist([row], schema=schema.ARCHIVE_SERIES)
