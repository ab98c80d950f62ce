"""Masks as 1-bit PNG."""

import functools
import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def encode_mask(mask_hw: npt.NDArray[np.bool_]) -> bytes:
    """A 1-bit PNG of a bool mask, (rows, columns)."""
    buffer = io.BytesIO()
    Image.fromarray(mask_hw).save(buffer, format="PNG")
    return buffer.getvalue()


@functools.lru_cache(maxsize=64)
def encode_empty_mask(height: int, width: int) -> bytes:
    """`encode_mask` of a mask without tumor, which most slices have."""
    return encode_mask(np.zeros((height, width), dtype=bool))


def decode_mask(png: bytes) -> npt.NDArray[np.bool_]:
    """The bool mask, (rows, columns), of a PNG made by `encode_mask`."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image, dtype=bool)
