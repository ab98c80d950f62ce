"""Rows of an archive's tables: what breaks their format, and their pixels."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segmodel.core import schema

REQUIRED = ("slice_id", "patient_id", "series_id", "slice_index", "height", "width")
"""Light columns that no slice may lack."""


@dataclass(frozen=True)
class SliceProblem:
    """Why a slice cannot be used."""

    row: int
    slice_id: str | None
    reason: str


def check_slices(table: pa.Table, channels: int) -> list[SliceProblem]:
    """Find slices whose ids, shape or bytes break the format, in order; one problem a slice.

    Args:
        table: the light columns and the pixels; masks are checked if they are there.
        channels: of the pixels.
    """
    problems = []
    light = table.select(schema.INDEX_COLUMNS).to_pylist()
    repeated = {
        name for name, count in Counter(row["slice_id"] for row in light).items() if count > 1
    }
    pixel_bytes = pc.binary_length(table["pixels"]).to_pylist()
    with_masks = "mask" in table.column_names
    mask_bytes = (
        pc.binary_length(table["mask"]).to_pylist() if with_masks else [None] * table.num_rows
    )
    for number, row in enumerate(light):
        height, width = row["height"], row["width"]
        empty = [name for name in REQUIRED if row[name] is None]
        reason = None
        if empty:
            reason = f"has no {' and no '.join(empty)}"
        elif row["slice_id"] in repeated:
            reason = "occurs twice"
        elif height < 1 or width < 1:
            reason = f"is {height}x{width} pixels"
        elif pixel_bytes[number] != height * width * channels:
            want = height * width * channels
            reason = (
                f"holds {pixel_bytes[number] or 0} bytes in column 'pixels', "
                f"expected {height}x{width}x{channels} = {want}"
            )
        elif mask_bytes[number] not in (None, height * width):
            reason = (
                f"holds {mask_bytes[number]} bytes in column 'mask', "
                f"expected {height}x{width} = {height * width}"
            )
        if reason:
            problems.append(SliceProblem(number, row["slice_id"], reason))
    return problems


def image(row: pa.Scalar, height: int, width: int, channels: int) -> npt.NDArray[np.uint8]:
    """The pixels of one slice, uint8 (rows, columns, channels), without a copy."""
    return np.frombuffer(row.as_buffer(), dtype=np.uint8).reshape(height, width, channels)


def images(
    pixels: pa.ChunkedArray, height: int, width: int, channels: int
) -> npt.NDArray[np.uint8]:
    """Pixels of slices of one size, uint8 (N, rows, columns, channels); no copy of one chunk."""
    if pixels.num_chunks != 1:
        return np.stack([image(row, height, width, channels) for row in pixels])
    chunk = pixels.chunk(0)
    _, offsets, data = chunk.buffers()
    start = int(np.frombuffer(offsets, dtype=np.int32)[chunk.offset])
    shape = (len(chunk), height, width, channels)
    return np.frombuffer(data, dtype=np.uint8, count=math.prod(shape), offset=start).reshape(shape)


def flair_channel(channels: Sequence[str]) -> int | None:
    """Number of the channel named FLAIR, if there is one."""
    return next((number for number, name in enumerate(channels) if name.lower() == "flair"), None)


def shown_channel(channels: Sequence[str]) -> int:
    """Number of the channel that pictures show: FLAIR, where a glioma is bright, else the first."""
    return flair_channel(channels) or 0
