"""8-bit TIFF files of one slice: RGB images and binary masks.

A file that cannot be used raises `RejectError` with the reason.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from segmodel.core.errors import first_line
from segmodel.sources.base import RejectError

MAX_PIXELS = 4096 * 4096
"""Larger images are not opened; a slice of an MRI is far smaller."""

_BITS_PER_SAMPLE = 258
_UPRIGHT = 1
"""Orientation of a TIFF whose rows and columns are stored as they are shown."""


class OtherOrientationError(RejectError):
    """The orientation tags of a mask and its image differ; which one is right is unknown."""


@dataclass(frozen=True)
class TiffPixels:
    """A decoded TIFF, rotated and flipped as its orientation tag says."""

    mode: str
    """As Pillow names it: RGB, L, 1 and so on."""
    values: npt.NDArray[np.uint8]
    """(rows, columns) or (rows, columns, channels)."""
    orientation: int
    """The orientation tag, 1 to 8; 1 where there is none."""


def read_image(content: bytes) -> TiffPixels:
    """An 8-bit RGB image, uint8 (rows, columns, 3).

    Raises:
        RejectError: it is something else, or damaged.
    """
    image = _decode(content)
    if image.mode != "RGB":
        raise RejectError(f"image of mode {image.mode}, expected RGB")
    return image


def read_mask(content: bytes, image: TiffPixels) -> npt.NDArray[np.bool_]:
    """The mask of `image`, bool (rows, columns).

    Raises:
        OtherOrientationError: the orientation tags of mask and image differ.
        RejectError: it is no mask of this image, or damaged.
    """
    mask = _decode(content)
    if mask.orientation != image.orientation:
        raise OtherOrientationError(
            f"its TIFF orientation is {image.orientation}, its mask's is {mask.orientation}"
        )
    if mask.mode not in ("L", "1"):
        raise RejectError(f"mask of mode {mask.mode}, expected one 8-bit channel")
    rows, columns = image.values.shape[:2]
    if mask.values.shape != (rows, columns):
        raise RejectError(
            f"mask of {mask.values.shape[0]}x{mask.values.shape[1]} pixels "
            f"on an image of {rows}x{columns}"
        )
    levels = set(np.unique(mask.values).tolist())
    if not (levels <= {0, 1} or levels <= {0, 255}):
        raise RejectError(
            f"mask with values other than 0 and 1 or 255: {sorted(levels - {0, 255})[:3]}"
        )
    return mask.values > 0


def _decode(content: bytes) -> TiffPixels:
    """Decode a TIFF, after its header has been found harmless."""
    with _harmless():
        return _pixels(Image.open(io.BytesIO(content), formats=["TIFF"]))


@contextmanager
def _harmless() -> Iterator[None]:
    """Turn everything that Pillow raises for damaged files into a `RejectError`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of damage that it then raises for.
            # What it only warns of, such as broken EXIF data, does not concern the pixels.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise RejectError(f"claims more pixels than {MAX_PIXELS}") from None
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
    ) as error:
        # Pillow's decoders raise all of these on damaged files.
        raise RejectError(f"unreadable TIFF: {_reason(error)}") from None


def _pixels(image: Image.Image) -> TiffPixels:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise RejectError(f"claims {height}x{width} pixels, more than {MAX_PIXELS}")
    if not isinstance(image, TiffImageFile):
        raise RejectError(f"not a TIFF but {image.format}")
    if image.n_frames > 1:
        raise RejectError(f"animated: {image.n_frames} frames")
    # Pillow silently converts 16-bit RGB to 8-bit; only the tag shows the original depth.
    bits = set(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    if not bits <= {1, 8}:
        raise RejectError(f"{max(bits)}-bit, expected 8-bit")
    orientation = _orientation(image)
    # Pillow rotates and flips the pixels while decoding, and drops the tag.
    values = np.asarray(image.convert("L") if image.mode == "1" else image)
    return TiffPixels(image.mode, values, orientation)


def _orientation(image: Image.Image) -> int:
    """The orientation tag; as in Pillow, values outside the TIFF standard are ignored."""
    tag = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    return tag if tag in range(1, 9) else _UPRIGHT


def _reason(error: BaseException) -> str:
    # A message may hold the address of the buffer, which differs from run to run.
    return re.sub(r"\s*<_io\.BytesIO object at 0x[0-9a-f]+>", "", first_line(error))
