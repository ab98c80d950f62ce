"""From volumes in the patient to rows of the archive: windows of intensity, resampling, slices."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segmodel.core import schema
from segmodel.core.grid import Grid, Turn
from segmodel.core.source_files import SourceFiles
from segmodel.sources.base import files_columns

THICK = 1.5
"""A stack is thick-sliced from this ratio of its greatest to its smallest spacing."""

MAX_VOXELS = 2**28
"""Of one sequence, so that a false header cannot fill the memory; the finest MRI has a third."""

Percentiles = tuple[float, float]


@dataclass(frozen=True)
class Channel:
    """What one channel of a series shows, on the grid of the series."""

    name: str
    voxels: npt.NDArray[np.float32]
    """(slices, rows, columns), in the units of the source."""
    source_uri: str
    because: str
    """Why this image was taken, in words; of a missing sequence, what stands in for it."""
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
    """(slices, rows, columns); None where nobody has annotated."""
    slice_index: Sequence[int]
    """Position of each slice, from 1; a number that is left out is a missing slice."""
    slice_uris: Sequence[str]
    """Source of each slice of the channel that gave the grid."""
    sop_instance_uids: Sequence[str | None] | None = None
    frame_of_reference_uid: str | None = None
    source_format: str
    source_grid: Grid
    turn: Turn
    files: SourceFiles | None = None
    """What the series was read from."""
    mask_uri: str | None = None
    label_voxels: dict[int, int] = field(default_factory=dict)
    """Voxels of each label of the mask, before labels were chosen."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the geometry."""
    no_volume_reason: str | None = None
    """Why the distance between slices has no single value; None where it has."""


def thick_plane(grid: Grid, turn: Turn) -> str | None:
    """The plane of the source's slices where they are thick and not axial, otherwise None."""
    spacing = grid.spacing_mm
    thickest = int(np.argmax(spacing))
    thick = spacing[thickest] >= THICK * min(spacing)
    return grid.plane(thickest) if thick and turn.axes[thickest] != 0 else None


def intensity_window(
    voxels: npt.NDArray[np.float32], percentiles: Percentiles
) -> tuple[float, float]:
    """The intensities that become 0 and 255: two percentiles of the voxels that are not 0.

    Returns:
        (low, high), equal where the image has one intensity only.
    """
    inside = voxels[voxels != 0]
    if inside.size == 0:
        return 0.0, 0.0
    low, high = np.percentile(inside, percentiles)
    return float(low), float(high)


def to_uint8(voxels: npt.NDArray[np.float32], window: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Intensities of the window to 0 … 255, others to the nearer end; all 0 where the window is empty."""
    low, high = window
    if high <= low:
        return np.zeros(voxels.shape, np.uint8)
    scaled = (voxels - np.float32(low)) * np.float32(255.0 / (high - low))
    np.clip(scaled, 0, 255, out=scaled)
    return np.asarray(np.rint(scaled, out=scaled), np.uint8)


def resample(
    voxels: npt.NDArray[np.float32], grid: Grid, target: Grid
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
    values = affine_transform(voxels, to_source, output_shape=target.shape, order=1, cval=0.0)
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
    pixels_dhwc = np.stack(
        [
            to_uint8(channel.voxels, window)
            for channel, window in zip(series.channels, windows, strict=True)
        ],
        axis=-1,
    )
    return _slices(series, pixels_dhwc), _series_row(series, windows)


def _slices(series: Series, pixels_dhwc: npt.NDArray[np.uint8]) -> pa.Table:
    count, height, width, _ = pixels_dhwc.shape
    slice_mm, row_mm, column_mm = series.grid.spacing_mm
    owner = series.patient_id
    stem = f"{owner}_" if series.series_id == owner else f"{owner}/{series.series_id}/"
    masks = [None] * count if series.mask is None else list(series.mask.astype(np.uint8))
    return pa.table(
        {
            "slice_id": [f"{stem}{index}" for index in series.slice_index],
            "patient_id": [owner] * count,
            "series_id": [series.series_id] * count,
            "slice_index": series.slice_index,
            "height": [height] * count,
            "width": [width] * count,
            "pixels": [one.tobytes() for one in pixels_dhwc],
            "mask": [None if one is None else one.tobytes() for one in masks],
            "row_spacing_mm": [row_mm] * count,
            "column_spacing_mm": [column_mm] * count,
            "slice_spacing_mm": [None if series.no_volume_reason else slice_mm] * count,
            "source_uri": series.slice_uris,
            "sop_instance_uid": series.sop_instance_uids or [None] * count,
        },
        schema=schema.ARCHIVE,
    )


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
        "turn_axes": list(series.turn.axes),
        "turn_mirrored": list(series.turn.mirrored),
        "channels": channels,
        **files_columns(series.files),
        "mask_uri": series.mask_uri,
        "label_voxels": list(series.label_voxels.items()),
        "notes": list(series.notes),
        "no_volume_reason": series.no_volume_reason,
    }
    return pa.Table.from_pylist([row], schema=schema.ARCHIVE_SERIES)
