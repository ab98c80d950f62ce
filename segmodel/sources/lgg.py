"""The layout of the Kaggle LGG data set: a folder a patient, `NAME_<slice>.tif` beside `NAME_<slice>_mask.tif`.

Images are 8-bit RGB TIFFs (pre-contrast, FLAIR, post-contrast), masks 8-bit and binary. The files carry no spacing.
"""

import errno
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from segmodel.core import schema
from segmodel.core.errors import SourceError
from segmodel.core.geometry import Spacing
from segmodel.sources.base import PatientRecord, slice_row
from segmodel.storage import store

CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
MAX_PIXELS = 4096 * 4096
"""A slice of an MRI is far smaller; what claims to be larger is not opened."""

MAX_NUMBER = 2**31 - 1
"""What an archive's slice_index can hold."""

_LASTING = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
)

_TIFF_BITS_PER_SAMPLE = 258
_FILE = re.compile(r"^(?P<image>.+_(?P<number>\d+))(?P<mask>_mask)?\.tiff?$", re.IGNORECASE)


class _RejectError(Exception):
    """Why one file is left out."""


@dataclass(frozen=True)
class LggSource:
    """Patients of a folder in the LGG layout.

    Args:
        uri: the folder that holds the patients' folders.
        spacing: of every patient, or None.
    """

    uri: str
    spacing: Spacing | None
    channels: tuple[str, ...] = CHANNELS
    intensity_scaling: str = "none: 8-bit values as in the TIFF files"

    @property
    def name(self) -> str:
        """For archive.json."""
        return f"lgg: {self.uri}"

    def patients(self) -> list[str]:
        """All folders; one without any slice has its reason among the rejects.

        Raises:
            SourceError: there is no folder, or no patient in it.
        """
        if not store.exists(self.uri):
            raise SourceError(
                f"{self.uri}: no such folder; --source must hold one folder a patient"
            )
        patients = store.list_folders(self.uri)
        if not any(self._may_hold_files(name) for name in patients):
            raise SourceError(
                f"{self.uri}: no patient's folder with files in it; --source must hold one folder a patient"
            )
        loose = [name for name in store.list_files(self.uri) if _FILE.match(name)]
        if loose:
            print(
                f"{self.uri}: {len(loose)} TIFF files in no patient's folder are passed over, the first is {loose[0]!r}",
                flush=True,
            )
        return patients

    def _may_hold_files(self, patient_id: str) -> bool:
        try:
            return bool(_list(store.join(self.uri, patient_id))[0])
        except _RejectError:
            return True

    def read(self, patient_id: str) -> PatientRecord:
        """All slices of one patient; every file that cannot be used becomes a reject with its reason."""
        folder = store.join(self.uri, patient_id)
        if _as_text(patient_id) != patient_id:
            return _record(
                [],
                [
                    {
                        "source_uri": _as_text(folder),
                        "patient_id": None,
                        "reason": "its name is not UTF-8",
                    }
                ],
            )
        try:
            names, folders = _list(folder)
        except _RejectError as error:
            return _record(
                [], [{"source_uri": folder, "patient_id": patient_id, "reason": str(error)}]
            )
        images, masks, rejects = _pair(names)
        rejects |= dict.fromkeys(
            folders, "a folder: the slices of a patient must lie in the patient's own"
        )
        rows = []
        for stem, (number, name) in sorted(images.items(), key=lambda item: (item[1][0], item[0])):
            mask_name = masks.get(stem)
            try:
                pixels = _read_image(_bytes(store.join(folder, name)))
            except _RejectError as error:
                rejects[name] = str(error)
                if mask_name:
                    rejects[mask_name] = f"its image {name} was left out"
                continue
            mask = None
            if mask_name:
                try:
                    mask = _read_mask(_bytes(store.join(folder, mask_name)), pixels.shape[:2])
                except _RejectError as error:
                    rejects[mask_name] = f"{error}; its image is kept without a mask"
            rows.append(
                slice_row(
                    slice_id=stem,
                    patient_id=patient_id,
                    slice_index=number,
                    pixels_hwc=pixels,
                    mask_hw=mask,
                    spacing=self.spacing,
                    source_uri=store.join(folder, name),
                )
            )
        reject_rows: list[dict[str, str | None]] = [
            {
                "source_uri": _as_text(store.join(folder, name)),
                "patient_id": patient_id,
                "reason": reason,
            }
            for name, reason in sorted(rejects.items())
        ]
        if not names and not folders:
            reject_rows.append(
                {"source_uri": folder, "patient_id": patient_id, "reason": "no file in it"}
            )
        return _record(rows, reject_rows)


def _record(rows: list[dict[str, object]], rejects: list[dict[str, str | None]]) -> PatientRecord:
    return PatientRecord(
        slices=pa.Table.from_pylist(rows, schema=schema.ARCHIVE),
        rejects=pa.Table.from_pylist(rejects, schema=schema.REJECTS),
    )


def _pair(names: list[str]) -> tuple[dict[str, tuple[int, str]], dict[str, str], dict[str, str]]:
    """Images (stem to slice number and file), masks (stem to file), and files that are neither (file to reason)."""
    images: dict[str, tuple[int, str]] = {}
    masks: dict[str, str] = {}
    rejects: dict[str, str] = {}
    for name in names:
        match = _FILE.match(name)
        if _as_text(name) != name:
            rejects[name] = "its name is not UTF-8"
        elif match is None:
            rejects[name] = "not named NAME_<slice>.tif or NAME_<slice>_mask.tif"
        elif int(match["number"]) > MAX_NUMBER:
            rejects[name] = f"its slice number is above {MAX_NUMBER}"
        elif match["image"] in (masks if match["mask"] else images):
            rejects[name] = "a file of the same name with the other ending came before"
        elif match["mask"]:
            masks[match["image"]] = name
        else:
            images[match["image"]] = int(match["number"]), name
    for stem in masks.keys() - images.keys():
        rejects[masks.pop(stem)] = "mask without an image"
    return images, masks, rejects


def _list(folder: str) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder."""
    with _own_faults(folder):
        return store.list_files(folder), store.list_folders(folder)


def _bytes(uri: str) -> bytes:
    with _own_faults(uri):
        return store.read_bytes(uri)


@contextmanager
def _own_faults(uri: str) -> Iterator[None]:
    """Makes a `_RejectError` of what a disk will say of this file or folder every time."""
    try:
        yield
    except OSError as error:
        # A store may say the like because credentials have expired, which is nothing of this file.
        if error.errno not in _LASTING or not store.is_local(uri):
            raise
        raise _RejectError(f"cannot be read: {error.strerror}") from None


def _as_text(name: str) -> str:
    """A name in which bytes that are not UTF-8, which Python holds as lone surrogates, have become escapes."""
    return name.encode(errors="backslashreplace").decode()


def _decode(content: bytes) -> tuple[str, npt.NDArray[np.uint8]]:
    """Mode and pixels of a TIFF, after its header has been found harmless."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of damage that it then raises for; what it only warns of, such as broken EXIF data, is no pixel's.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _pixels(Image.open(io.BytesIO(content), formats=["TIFF"]))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _RejectError(f"claims more pixels than {MAX_PIXELS}") from None
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
        raise _RejectError(f"unreadable TIFF: {_first_line(error)}") from None


def _pixels(image: Image.Image) -> tuple[str, npt.NDArray[np.uint8]]:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _RejectError(f"claims {height}x{width} pixels, more than {MAX_PIXELS}")
    if not isinstance(image, TiffImageFile):
        raise _RejectError(f"not a TIFF but {image.format}")
    if image.n_frames > 1:
        raise _RejectError(f"animated: {image.n_frames} frames")
    # Pillow turns 16-bit RGB into 8-bit without a word: the tag tells.
    bits = set(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (1,)))
    if not bits <= {1, 8}:
        raise _RejectError(f"{max(bits)}-bit, expected 8-bit")
    return image.mode, np.asarray(image.convert("L") if image.mode == "1" else image)


def _read_image(content: bytes) -> npt.NDArray[np.uint8]:
    mode, pixels = _decode(content)
    if mode != "RGB":
        raise _RejectError(f"image of mode {mode}, expected RGB: {', '.join(CHANNELS)}")
    return pixels


def _read_mask(content: bytes, image_shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    mode, values = _decode(content)
    if mode not in ("L", "1"):
        raise _RejectError(f"mask of mode {mode}, expected one 8-bit channel")
    if values.shape != image_shape:
        raise _RejectError(
            f"mask of {values.shape[0]}x{values.shape[1]} pixels on an image of {image_shape[0]}x{image_shape[1]}"
        )
    levels = set(np.unique(values).tolist())
    if not (levels <= {0, 1} or levels <= {0, 255}):
        raise _RejectError(
            f"mask with values other than 0 and 1 or 255: {sorted(levels - {0, 255})[:3]}"
        )
    return values > 0


def _first_line(error: BaseException) -> str:
    # A message may hold the address of the buffer, which says nothing to anyone and differs from run to run.
    return (
        re.sub(r"\s*<_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error)).splitlines()[0]
        if str(error)
        else type(error).__name__
    )
