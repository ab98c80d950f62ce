"""DICOM headers: what each image of a file is and where it lies, without its pixels.

Only the elements named here are read: no name, birth date or other identifying element but the
patient's id enters the program.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from segmodel.sources.dicom_elements import (
    first_item,
    number_of,
    numbers,
    tag_of,
    texts,
    value_of,
    whole_number,
)
from segmodel.sources.dicom_file import open_dicom, why_too_large
from segmodel.sources.file_errors import own_faults
from segmodel.storage import store

_ELEMENTS = (
    "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyDate", "Modality", "SeriesDescription",
    "PatientID", "ProtocolName", "ContrastBolusAgent", "ScanningSequence", "SequenceName",
    "SequenceVariant", "MRAcquisitionType", "RepetitionTime", "EchoTime", "InversionTime",
    "EchoNumbers", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "AcquisitionNumber",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID",
    "TemporalPositionIdentifier", "NumberOfFrames", "Rows", "Columns", "PixelSpacing",
    "DiffusionBValue", "TriggerTime", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "SamplesPerPixel", "PhotometricInterpretation",
)  # fmt: skip
_OWNER = (
    *("SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
    "Rows",
)

DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""Screenshots and scanned paper; so begin the UIDs of all their kinds."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """One image: a classic file, or one frame of a multi-frame file."""

    path: str
    """Below the source."""
    frame: int | None
    """From 0; None in a file of one image."""
    sop_instance_uid: str
    patient_id: str
    study_uid: str
    study_date: str | None
    """YYYYMMDD as the file has it."""
    series_uid: str
    series_number: int | None
    description: str
    """Of the series; the protocol's name if it has none."""
    protocol: str
    """Name of the protocol; at some hospitals that of the whole examination."""
    modality: str
    image_type: tuple[str, ...]
    sequence: str
    """Scanning sequence, variant and name, such as `SE IR SK`."""
    contrast: bool
    """Whether a contrast agent is named."""
    repetition_time: float | None
    """ms, as all times here."""
    echo_time: float | None
    inversion_time: float | None
    frame_of_reference: str | None
    orientation: tuple[float, ...] | None
    """Direction cosines along a row, then along a column; LPS."""
    position: tuple[float, ...] | None
    """Centre of the first pixel, LPS mm."""
    rows: int
    columns: int
    spacing: tuple[float, float] | None
    """Between rows, between columns; mm."""
    echo_number: int | None
    b_value: float | None
    temporal_position: int | None
    acquisition: int | None
    trigger_time: float | None
    transfer_syntax: str
    colour: bool


@dataclass(frozen=True)
class NoImage:
    """A file that holds no image of a scanner, and why: counted, and no error."""

    path: str
    kind: str


@dataclass(frozen=True)
class BrokenFile:
    """A file that should be an image and cannot be used."""

    path: str
    patient_id: str | None
    reason: str


def read_headers(folder: str, path: str) -> list[ImageHeader] | NoImage | BrokenFile:
    """The images of one file.

    Args:
        folder: URI of the source.
        path: of the file, below it.

    Raises:
        RejectError: the disk does not give the file.
        OSError: the store gives no answer.
    """
    dataset = _read(folder, path, _ELEMENTS)
    if isinstance(dataset, NoImage | BrokenFile):
        return dataset
    try:
        with _quiet():
            return _why_no_image(path, dataset) or _images(path, dataset)
    except Exception as error:  # noqa: BLE001 - a value of the wrong type may break anything
        patient = str(value_of(dataset, "PatientID") or "") or None
        return BrokenFile(path, patient, f"its header is damaged: {error}")


def read_owner(folder: str, path: str) -> str | NoImage | BrokenFile:
    """The id of the patient whose image a file is; quicker than `read_headers`."""
    dataset = _read(folder, path, _OWNER)
    if isinstance(dataset, NoImage | BrokenFile):
        return dataset
    try:
        with _quiet():
            return _why_no_image(path, dataset) or str(value_of(dataset, "PatientID"))
    except Exception as error:  # noqa: BLE001 - a value of the wrong type may break anything
        return BrokenFile(path, None, f"its header is damaged: {error}")


def _read(folder: str, path: str, elements: Sequence[str]) -> Any:
    """Pydicom's data set with some elements, or why there is none."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    wanted = [tag_of(name) for name in elements]
    uri = store.join(folder, path)
    with own_faults(uri), open_dicom(uri) as file, _quiet():
        try:
            too_large = why_too_large(file)
            if too_large:
                return BrokenFile(path, None, too_large)
            return dcmread(file, stop_before_pixels=True, specific_tags=wanted)
        except InvalidDicomError:
            return NoImage(path, "no DICOM file")
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged file may break the parser anywhere
            return BrokenFile(path, None, f"its header cannot be read: {error}")


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of pydicom about odd values: what is needed is checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _why_no_image(path: str, dataset: Any) -> NoImage | BrokenFile | None:
    """Why a file is no image of a scanner, or cannot be told whose; None if it can."""
    sop_class = str(value_of(dataset, "SOPClassUID") or "")
    meta = getattr(dataset, "file_meta", None)
    if str(getattr(meta, "MediaStorageSOPClassUID", "")) == DICOMDIR_CLASS:
        return NoImage(path, "DICOMDIR")
    if sop_class.startswith(SECONDARY_CAPTURE):
        return NoImage(path, "secondary capture")
    if not value_of(dataset, "Rows"):
        from pydicom.uid import UID

        return NoImage(path, UID(sop_class).name if sop_class else "no image")
    for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not value_of(dataset, name):
            return BrokenFile(
                path, str(value_of(dataset, "PatientID") or "") or None, f"has no {name}"
            )
    return None


def _images(path: str, dataset: Any) -> list[ImageHeader] | BrokenFile:
    shared = first_item(dataset, "SharedFunctionalGroupsSequence")
    frames = value_of(dataset, "PerFrameFunctionalGroupsSequence")
    if not frames:
        count = int(value_of(dataset, "NumberOfFrames") or 1)
        if count > 1:
            return BrokenFile(
                path,
                str(value_of(dataset, "PatientID")),
                f"{count} frames without a position for each",
            )
        return [_image(path, dataset, None, (dataset,))]
    return [
        _image(path, dataset, number, (frame, shared, dataset))
        for number, frame in enumerate(frames)
    ]


_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "RepetitionTime": "MRTimingAndRelatedParametersSequence",
    "InversionTimes": "MRModifierSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameType": "MRImageFrameTypeSequence",
}
"""The functional group of Enhanced MR that holds an element."""


def _image(path: str, dataset: Any, number: int | None, places: tuple[Any, ...]) -> ImageHeader:
    def value(name: str, *others: str) -> Any:
        for place in places:
            for element in (name, *others):
                found = _in_group(place, element)
                if found not in (None, ""):
                    return found
        return None

    image_type = texts(value("ImageType", "FrameType"))
    sequence = [value(name) for name in ("ScanningSequence", "SequenceVariant", "SequenceName")]
    spacing = numbers(value("PixelSpacing"), 2)
    protocol = str(value_of(dataset, "ProtocolName") or "").strip()
    return ImageHeader(
        path=path,
        frame=number,
        sop_instance_uid=str(value_of(dataset, "SOPInstanceUID")),
        patient_id=str(value_of(dataset, "PatientID")),
        study_uid=str(value_of(dataset, "StudyInstanceUID")),
        study_date=str(value_of(dataset, "StudyDate") or "") or None,
        series_uid=str(value_of(dataset, "SeriesInstanceUID")),
        series_number=whole_number(value_of(dataset, "SeriesNumber")),
        description=str(value_of(dataset, "SeriesDescription") or "").strip() or protocol,
        protocol=protocol,
        modality=str(value_of(dataset, "Modality") or ""),
        image_type=tuple(text.upper() for text in image_type),
        sequence=" ".join(text for part in sequence for text in texts(part)),
        contrast=_names_agent(value("ContrastBolusAgent")),
        repetition_time=number_of(value("RepetitionTime")),
        echo_time=number_of(value("EchoTime", "EffectiveEchoTime")),
        inversion_time=number_of(value("InversionTime", "InversionTimes")),
        frame_of_reference=str(value_of(dataset, "FrameOfReferenceUID") or "") or None,
        orientation=numbers(value("ImageOrientationPatient"), 6),
        position=numbers(value("ImagePositionPatient"), 3),
        rows=int(value_of(dataset, "Rows")),
        columns=int(value_of(dataset, "Columns")),
        spacing=(spacing[0], spacing[1]) if spacing else None,
        echo_number=whole_number(value("EchoNumbers")),
        b_value=number_of(value("DiffusionBValue")),
        temporal_position=whole_number(
            value("TemporalPositionIdentifier", "TemporalPositionIndex")
        ),
        acquisition=whole_number(value_of(dataset, "AcquisitionNumber")),
        trigger_time=number_of(value_of(dataset, "TriggerTime")),
        transfer_syntax=_syntax(dataset),
        colour=int(value_of(dataset, "SamplesPerPixel") or 1) != 1,
    )


def _names_agent(value: Any) -> bool:
    """Whether a contrast agent is named; some scanners write `NO` where there was none."""
    text = str(value or "").strip().lower()
    return text not in ("", "no", "none", "n", "n/a", "na", "without")


def _in_group(place: Any, element: str) -> Any:
    """An element of a classic header, or of its functional group in an enhanced one."""
    if place is None:
        return None
    found = value_of(place, element)
    if found not in (None, "") or element not in _GROUPS:
        return found
    group = first_item(place, _GROUPS[element])
    return None if group is None else value_of(group, element)


def _syntax(dataset: Any) -> str:
    uid = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    return uid.name if uid is not None else "unknown"
