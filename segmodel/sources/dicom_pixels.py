"""Pixels of a DICOM stack, in the units that the scanner means.

Errors name an image by its SOP instance UID: folders are often named after patients.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segmodel.sources.base import RejectError
from segmodel.sources.dicom_file import open_dicom
from segmodel.sources.dicom_headers import ImageHeader
from segmodel.sources.file_errors import own_faults
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
    opened: tuple[str, Any, Any] | None = None
    for number, image in enumerate(images):
        if opened is None or opened[0] != image.path:
            opened = (image.path, *_decode(folder, image))
        _, dataset, stored = opened
        plane = stored if image.frame is None else stored[image.frame]
        if plane.shape != (image.rows, image.columns):
            raise RejectError(
                f"image {image.sop_instance_uid}: its pixels are {plane.shape}, its header says "
                "otherwise"
            )
        values = _rescaled(dataset, plane, image.frame)
        if voxels is None:
            voxels = np.zeros(shape, values.dtype)
        elif voxels.dtype != values.dtype:
            voxels = voxels.astype(np.float32)
        voxels[number] = values
    return np.zeros(shape, np.float32) if voxels is None else voxels


def _decode(folder: str, image: ImageHeader) -> tuple[Any, npt.NDArray[Any]]:
    from pydicom import dcmread

    uri = store.join(folder, image.path)
    with own_faults(uri), open_dicom(uri) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = dcmread(file)
        except OSError:
            raise
        except Exception as error:
            raise RejectError(f"image {image.sop_instance_uid}: cannot be read: {error}") from error
        if str(dataset.get("SOPInstanceUID")) != image.sop_instance_uid:
            raise RejectError(f"image {image.sop_instance_uid}: changed while it was being read")
        sizes = [int(dataset.get(name) or 1) for name in ("NumberOfFrames", "Rows", "Columns")]
        if np.prod(sizes, dtype=np.float64) > MAX_VOXELS:
            claimed = " x ".join(map(str, sizes))
            raise RejectError(f"image {image.sop_instance_uid}: its header claims {claimed} voxels")
        try:
            return dataset, dataset.pixel_array
        except Exception as error:
            raise RejectError(
                f"image {image.sop_instance_uid}: its pixels ({image.transfer_syntax}) cannot be "
                f"decoded: {error}"
            ) from error


def _rescaled(dataset: Any, stored: npt.NDArray[Any], frame: int | None) -> npt.NDArray[Any]:
    """The scanner's values of one image: 16-bit where nothing had to be computed, or float32."""
    stored = _without_overlays(dataset, stored)
    slope, intercept = _rescale(dataset, frame)
    inverted = str(dataset.get("PhotometricInterpretation")) == "MONOCHROME1"
    values = stored
    if stored.dtype.itemsize != 2 or slope != 1 or intercept != 0 or inverted:
        values = stored.astype(np.float32)
    elif not stored.dtype.isnative:
        values = stored.astype(stored.dtype.newbyteorder("="))
    if slope != 1 or intercept != 0:
        values = values * np.float32(slope) + np.float32(intercept)
    if inverted:
        values = np.float32(values.max() + values.min()) - values
    padding = _padding(dataset, stored)
    return values if padding is None else np.where(padding, values.dtype.type(0), values)


def _without_overlays(dataset: Any, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The stored bits alone: older files keep overlays in the bits above them."""
    spare = stored.dtype.itemsize * 8 - int(dataset.BitsStored)
    if stored.dtype.kind not in "iu" or spare <= 0:
        return stored
    return (stored << spare) >> spare  # an arithmetic shift carries the sign of signed values


def _rescale(dataset: Any, frame: int | None) -> tuple[float, float]:
    places = [dataset]
    if frame is not None:
        groups = [dataset.PerFrameFunctionalGroupsSequence[frame]]
        shared = dataset.get("SharedFunctionalGroupsSequence")
        groups += [shared[0]] if shared else []
        found = [group.get("PixelValueTransformationSequence") for group in groups]
        places = [sequence[0] for sequence in found if sequence] + places
    for place in places:
        if place.get("RescaleSlope") is not None:
            return float(place.RescaleSlope), float(place.get("RescaleIntercept") or 0)
    return 1.0, 0.0


def _padding(dataset: Any, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Where the image has no data, as PixelPaddingValue and its range say."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return np.asarray((stored >= low) & (stored <= high))
