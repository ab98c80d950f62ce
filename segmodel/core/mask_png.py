"""Masks as 1-bit PNG."""

import functools
import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def encode_mask(mask_hw: npt.NDArray[np.bool_]) -> bytes:
    """A 1-bit PNG of a bool mask, (rows, columns)."""
    return encode_packed_mask(np.packbits(mask_hw, axis=1), mask_hw.shape[1])


def encode_packed_mask(bits_hb: npt.NDArray[np.uint8], width: int) -> bytes:
    """`encode_mask` of a packed mask, (rows, bytes): eight columns a byte, highest bit first."""
    buffer = io.BytesIO()
    Image.frombytes("1", (width, len(bits_hb)), bits_hb.tobytes()).save(buffer, format="PNG")
    return buffer.getvalue()


@functools.lru_cache(maxsize=64)
def encode_empty_mask(height: int, width: int) -> bytes:
    """`encode_mask` of a mask without tumor, which most slices have."""
    return encode_mask(np.zeros((height, width), dtype=bool))


def decode_mask(png: bytes) -> npt.NDArray[np.bool_]:
    """The bool mask, (rows, columns), of a PNG made by `encode_mask`."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image, dtype=bool)
