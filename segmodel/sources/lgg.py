"""The layout of the Kaggle LGG data set.

One folder per patient with `NAME_<slice>.tif` and `NAME_<slice>_mask.tif`. Images are 8-bit RGB
TIFFs (pre-contrast, FLAIR, post-contrast), masks 8-bit and binary. The files carry no spacing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segmodel.core import schema
from segmodel.core.errors import SourceError
from segmodel.core.geometry import Spacing
from segmodel.core.progress import say
from segmodel.core.source_files import SourceFiles
from segmodel.sources.base import (
    NONE_KNOWN,
    KnownSeries,
    PatientRecord,
    RejectError,
    changed,
    plain_series,
    slice_row,
)
from segmodel.sources.file_errors import as_text
from segmodel.sources.patient_folder import PatientFolder, list_folder
from segmodel.sources.tiff import OtherOrientationError, read_image, read_mask
from segmodel.storage import store

MAX_LOOKS = 200
"""Folders that are listed to find the source that was meant."""
CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
MAX_NUMBER = 2**31 - 1
"""What an archive's slice_index can hold."""

_FILE = re.compile(r"^(?P<image>.+_(?P<number>\d+))(?P<mask>_mask)?\.tiff?$", re.IGNORECASE)


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

    @property
    def settings(self) -> object:
        """All else that decides what is read."""
        return asdict(self)

    def restricted_to(self, *patients: str) -> Self:
        """The source itself: it is small."""
        return self

    def problems(self) -> list[dict[str, Any]]:
        """None that belongs to no patient."""
        return []

    def patients(self) -> list[str]:
        """Names of all folders; a folder without slices has its reason among the rejects.

        Raises:
            SourceError: there is no such folder, or no patient in it.
        """
        if not store.exists(self.uri):
            raise SourceError(
                f"{self.uri}: no such folder; --source must hold one folder a patient"
            )
        patients = store.list_folders(self.uri)
        if not any(_may_hold_slices(store.join(self.uri, name)) for name in patients):
            raise SourceError(
                f"{self.uri}: no patient's folder with NAME_<slice>.tif files in it; "
                f"--source must hold one folder a patient{self._hint()}"
            )
        loose = [name for name in store.list_files(self.uri) if _FILE.match(name)]
        if loose:
            say(
                f"{self.uri}: {len(loose)} TIFF files outside the patients' folders are skipped, "
                f"the first is {loose[0]!r}"
            )
        return patients

    def _hint(self) -> str:
        """Names the folder that was probably meant, above or below the one that was given."""
        folders = [self.uri]
        for _ in range(MAX_LOOKS):
            if not folders:
                break
            folder = folders.pop(0)
            try:
                names, inner = list_folder(folder)
            except (RejectError, OSError):
                continue
            parent = folder.rpartition("/")[0]
            if any(map(_FILE.match, names)) and not parent.endswith("/"):
                return f"; did you mean {parent}?"
            folders += [store.join(folder, name) for name in inner]
        return ""

    def read(self, patient_id: str, known: KnownSeries = NONE_KNOWN) -> PatientRecord:
        """All slices of one patient; every file that cannot be used becomes a reject."""
        if patient_id in known:
            return self._check_unchanged(patient_id, known[patient_id])
        uri = store.join(self.uri, patient_id)
        try:
            folder = PatientFolder(uri, _FILE.match)
        except RejectError as error:
            named = patient_id if as_text(patient_id) == patient_id else None
            return _record([], [_reject(uri, named, str(error))])
        images, masks, rejects = _pair(folder.names)
        rejects |= dict.fromkeys(
            folder.folders, "a folder: the slices of a patient must lie in the patient's own"
        )
        rows = []
        for stem, (number, name) in sorted(images.items(), key=lambda item: (item[1][0], item[0])):
            image, mask, reasons = _read_slice(folder, name, masks.get(stem))
            rejects |= reasons
            if image is not None:
                rows.append(
                    slice_row(
                        slice_id=_slice_id(patient_id, stem),
                        patient_id=patient_id,
                        slice_index=number,
                        pixels_hwc=image,
                        mask_hw=mask,
                        spacing=self.spacing,
                        source_uri=store.join(uri, name),
                    )
                )
        reject_rows = [
            _reject(store.join(uri, name), patient_id, reason)
            for name, reason in sorted(rejects.items())
        ]
        if not folder.names and not folder.folders:
            reject_rows.append(_reject(uri, patient_id, "no file in it"))
        return _record(rows, reject_rows, folder.source_files())

    def location_of(self, patient_id: str) -> str:
        """The patient's folder."""
        return as_text(store.join(self.uri, patient_id))

    def _check_unchanged(self, patient_id: str, before: SourceFiles | None) -> PatientRecord:
        """For a patient of the archive: a reject, if the source files have changed."""
        difference = self._difference(patient_id, before) if before else None
        rejects = (
            [changed(self.location_of(patient_id), patient_id, difference)] if difference else []
        )
        return _record([], rejects)

    def _difference(self, patient_id: str, before: SourceFiles) -> str | None:
        """How a patient's files differ from those that it was made from; None if they do not.

        The files are read only where their sizes or times differ.
        """
        try:
            folder = PatientFolder(store.join(self.uri, patient_id), _FILE.match)
        except RejectError as error:
            return str(error)
        if folder.listing() == before.listing or folder.content() == before.content:
            return None
        if len(folder.names) != before.count:
            return f"{before.count} files then, {len(folder.names)} now"
        return f"{before.count} files, then and now, of which some have another name or content"


def _read_slice(
    folder: PatientFolder, name: str, mask_name: str | None
) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.bool_] | None, dict[str, str]]:
    """Pixels and mask of one slice, each None if it cannot be used, and the reasons by file."""
    without_image = {mask_name: f"its image {name} was left out"} if mask_name else {}
    try:
        image = read_image(folder.read(name))
    except RejectError as error:
        return None, None, {name: str(error), **without_image}
    if mask_name is None:
        return image.values, None, {}
    try:
        return image.values, read_mask(folder.read(mask_name), image), {}
    except OtherOrientationError as error:
        return None, None, {name: str(error), **without_image}
    except RejectError as error:
        return image.values, None, {mask_name: f"{error}; its image is kept without a mask"}


def _slice_id(patient_id: str, stem: str) -> str:
    """An id that is unique in the archive, because no two patients' folders have the same name.

    The names of the LGG data set, PATIENT_<slice>, stay as they are. Any other name may be that of
    another patient's file too; the slash cannot be part of a name.
    """
    start, _, number = stem.rpartition("_")
    return stem if start == patient_id and number.isdecimal() else f"{patient_id}/{stem}"


def _reject(uri: str, patient_id: str | None, reason: str) -> dict[str, str | None]:
    return {"source_uri": as_text(uri), "patient_id": patient_id, "reason": reason}


def _record(
    rows: list[dict[str, object]],
    rejects: Sequence[Mapping[str, str | None]],
    files: SourceFiles | None = None,
) -> PatientRecord:
    slices = pa.Table.from_pylist(rows, schema=schema.ARCHIVE)
    return PatientRecord(
        slices=slices,
        rejects=pa.Table.from_pylist(rejects, schema=schema.REJECTS),
        series=plain_series(slices, "lgg", CHANNELS, files),
    )


def _pair(names: list[str]) -> tuple[dict[str, tuple[int, str]], dict[str, str], dict[str, str]]:
    """Images by stem (slice number and file), masks by stem, and other files with the reason."""
    images: dict[str, tuple[int, str]] = {}
    masks: dict[str, str] = {}
    rejects: dict[str, str] = {}
    for name in names:
        match = _FILE.match(name)
        if as_text(name) != name:
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


def _may_hold_slices(folder: str) -> bool:
    """Whether a slice's file lies in a folder, or the folder cannot be listed."""
    try:
        return any(map(_FILE.match, list_folder(folder)[0]))
    except RejectError:
        return True
