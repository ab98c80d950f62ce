"""Reads the pixels of a DICOM stack, in the scanner's units.

Errors name an image by its SOP instance UID: folders are often named after patients.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segmodel.sources.base import RejectError
from segmodel.sources.dicom_file import open_dicom
from segmodel.sources.dicom_image import ImageHeader
from segmodel.sources.dicom_parser import quiet
from segmodel.sources.file_errors import reject_lasting_errors
from segmodel.sources.volume import MAX_VOXELS
from segmodel.storage import store


def read_pixels(folder: str, images: Sequence[ImageHeader]) -> npt.NDArray[Any]:
    """Decode the images of a stack; each file is read once.

    Args:
        folder: URI of the source.
        images: of one size, in order.

    Returns:
        (images, rows, columns): rescaled, padding set to 0, MONOCHROME1 inverted.
        Whole numbers of 16 bits where all images are such, otherwise float32.

    Raises:
        RejectError: an image cannot be decoded, or is another one than its header said.
        OSError: the store gives no answer.
    """
    shape = (len(images), images[0].rows, images[0].columns)
    voxels: npt.NDArray[Any] | None = None
    opened: tuple[str, npt.NDArray[Any]] | None = None
    for number, image in enumerate(images):
        if opened is None or opened[0] != image.path:
            opened = (image.path, _decode(folder, image))
        values = _rescaled(image, _plane(image, opened[1]))
        if voxels is None:
            voxels = np.zeros(shape, values.dtype)
        elif voxels.dtype != values.dtype:
            voxels = voxels.astype(np.float32, copy=False)
        voxels[number] = values
    return np.zeros(shape, np.float32) if voxels is None else voxels


def _plane(image: ImageHeader, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The stored values of one image, (rows, columns), among those of its file."""
    shape, number = (image.rows, image.columns), image.frame or 0
    if stored.shape[-2:] != shape or stored.ndim > 3:
        raise RejectError(
            f"image {image.sop_instance_uid}: its pixels are {stored.shape}, its header says "
            f"{shape}"
        )
    frames = stored.reshape(-1, *shape)
    if number >= len(frames):
        raise RejectError(
            f"image {image.sop_instance_uid}: frame {number + 1} has no pixels, only {len(frames)} "
            "frames have"
        )
    return np.asarray(frames[number])


def _decode(folder: str, image: ImageHeader) -> npt.NDArray[Any]:
    """The stored values of a file: (rows, columns); of several frames (frames, rows, columns)."""
    from pydicom.pixels.decoders.base import get_decoder

    options = image.pixels.options
    sizes = [int(options[name]) for name in ("number_of_frames", "rows", "columns")]
    if np.prod(sizes, dtype=np.float64) > MAX_VOXELS:
        claimed = " x ".join(map(str, sizes))
        raise RejectError(f"image {image.sop_instance_uid}: its header claims {claimed} voxels")
    encoded = _encoded(folder, image)
    with quiet():
        try:
            stored, _ = get_decoder(image.pixels.syntax_uid).as_array(encoded, **options)
        except Exception as error:
            raise RejectError(
                f"image {image.sop_instance_uid}: its pixels ({image.transfer_syntax}) cannot be "
                f"decoded: {error}"
            ) from error
    return stored


def _encoded(folder: str, image: ImageHeader) -> bytes:
    """The pixels of a file as they are stored, if it is the file whose header was read."""
    uri, pixels = store.join(folder, image.path), image.pixels
    with reject_lasting_errors(uri), open_dicom(uri) as file:
        if pixels.offset is None:
            return _unpacked(file, image)
        file.seek(pixels.uid_offset)
        _check_same(image, file.read(len(image.sop_instance_uid)).decode(errors="replace"))
        file.seek(pixels.offset)
        return bytes(file.read(pixels.length))


def _unpacked(file: Any, image: ImageHeader) -> bytes:
    """The same of a file that is deflated as a whole."""
    from pydicom import dcmread

    with quiet():
        try:
            dataset = dcmread(file)
            uid = str(dataset.get("SOPInstanceUID"))
            pixels = dataset.get(image.pixels.options.get("pixel_keyword", "PixelData"))
        except OSError:
            raise
        except Exception as error:
            raise RejectError(f"image {image.sop_instance_uid}: cannot be read: {error}") from error
    _check_same(image, uid)
    if pixels is None:
        raise RejectError(f"image {image.sop_instance_uid}: has no pixels")
    return bytes(pixels)


def _check_same(image: ImageHeader, uid: str) -> None:
    if uid != image.sop_instance_uid:
        raise RejectError(f"image {image.sop_instance_uid}: changed while it was being read")


def _rescaled(image: ImageHeader, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The scanner's values of one image: 16-bit where nothing had to be computed, or float32."""
    slope, intercept = image.rescale
    bits = int(image.pixels.options.get("bits_stored", 0))
    values = stored = _without_overlays(stored, bits)
    if image.pixels.options["photometric_interpretation"] == "MONOCHROME1":
        values = _without_overlays(_inverted(stored), bits)
    if stored.dtype.itemsize != 2 or slope != 1 or intercept != 0:
        values = values.astype(np.float32)
    elif not stored.dtype.isnative:
        values = values.astype(stored.dtype.newbyteorder("="))
    if slope != 1 or intercept != 0:
        values = values * np.float32(slope) + np.float32(intercept)
    if image.pixels.padding is None:
        return values
    # Some files write the padding with the other sign than the pixels; its bits are the same.
    padding = np.array(image.pixels.padding).astype(stored.dtype)
    low, high = sorted(_without_overlays(padding, bits))
    return np.where((stored >= low) & (stored <= high), values.dtype.type(0), values)


def _inverted(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Invert the pixels; all images of a stack are inverted alike."""
    return -stored if stored.dtype.kind == "f" else ~stored


def _without_overlays(stored: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """The lowest bits alone: older files keep overlays in the bits above them."""
    spare = stored.dtype.itemsize * 8 - bits
    if stored.dtype.kind not in "iu" or spare <= 0:
        return stored
    return (stored << spare) >> spare  # an arithmetic shift carries the sign of signed values
