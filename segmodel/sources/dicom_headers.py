"""DICOM headers: what each image of a file is and where it lies, without its pixels.

Only the elements named here are read: no name, birth date or other identifying element but the
patient's id enters the program.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from segmodel.sources.dicom_elements import (
    number_of,
    numbers,
    tag_of,
    text_of,
    texts,
    values_of,
    whole_number,
)
from segmodel.sources.dicom_image import BrokenFile, ImageHeader, NoImage, StoredPixels
from segmodel.sources.dicom_parser import (
    PIXEL_ELEMENTS,
    ParsedHeader,
    PixelElement,
    quiet,
    read_elements,
)

_IDS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_SERIES = ("StudyDate", "Modality", "SeriesNumber", "SeriesDescription", "ProtocolName")
_IMAGE = ("SOPClassUID", "ImageType", "AcquisitionNumber", "EchoNumbers")
_CONTRAST = ("ContrastBolusAgent", "ContrastBolusAgentSequence")
_PULSE_SEQUENCE = ("ScanningSequence", "SequenceName", "SequenceVariant")
_TIMING = ("RepetitionTime", "EchoTime", "InversionTime", "TriggerTime")
_VOLUME = ("TemporalPositionIdentifier", "DiffusionBValue")
_POSITION = ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID")
_VALUES = ("PixelSpacing", "RescaleSlope", "RescaleIntercept")
_ENHANCED = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_DESCRIPTION = (*_SERIES, *_IMAGE, *_CONTRAST, *_PULSE_SEQUENCE, *_TIMING, *_VOLUME)
_ELEMENTS = (*_IDS, *PIXEL_ELEMENTS, *_DESCRIPTION, *_POSITION, *_VALUES, *_ENHANCED)

_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing",),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRTimingAndRelatedParametersSequence": ("RepetitionTime",),
    "MRModifierSequence": ("InversionTimes",),
    "MRDiffusionSequence": ("DiffusionBValue",),
    "FrameContentSequence": ("TemporalPositionIndex",),
    "MRImageFrameTypeSequence": ("FrameType",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
}
"""Functional groups of Enhanced MR, and what is read of each."""

_ROUNDING = 0.02
"""Error of products of direction cosines that have two decimals."""

DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""Screenshots and scanned paper; so begin the UIDs of all their kinds."""


@cache
def _names_of(*elements: str) -> Mapping[int, str]:
    """Keywords of elements, by tag."""
    return {tag_of(name): name for name in elements}


def read_headers(folder: str, path: str) -> list[ImageHeader] | NoImage | BrokenFile:
    """The images of one file.

    Args:
        folder: URI of the source.
        path: of the file, below it.

    Raises:
        RejectError: the disk does not give the file.
        OSError: the store gives no answer.
    """
    pixels = PixelElement()
    header = read_elements(folder, path, _names_of(*_ELEMENTS), pixels.stop)
    if isinstance(header, NoImage | BrokenFile):
        return header
    try:
        with quiet():
            return _why_no_image(path, header) or _images(
                path, header.values, pixels.stored(header)
            )
    except Exception as error:  # noqa: BLE001 - a value of the wrong type may break anything
        patient = text_of(header.values.get("PatientID")) or None
        return BrokenFile(path, patient, f"its header is damaged: {error}")


def read_owner(folder: str, path: str) -> str | NoImage | BrokenFile:
    """The id of the patient whose image a file is; reads no further than that, if it can.

    Raises:
        RejectError: the disk does not give the file.
        OSError: the store gives no answer.
    """
    last = tag_of("PatientID")
    header = read_elements(
        folder,
        path,
        _names_of("SOPClassUID", "PatientID"),
        lambda tag, _vr, _length: int(tag) > last,
    )
    if isinstance(header, NoImage | BrokenFile):
        return header
    patient = text_of(header.values.get("PatientID"))
    if patient and _holds_images(text_of(header.values.get("SOPClassUID"))):
        return patient
    found = read_headers(folder, path)
    return found[0].patient_id if isinstance(found, list) else found


@cache
def _holds_images(sop_class: str) -> bool:
    """Whether files of a SOP class are images of a scanner."""
    is_image = _name_of(sop_class).endswith("Image Storage")
    return is_image and not sop_class.startswith(SECONDARY_CAPTURE)


@cache
def _name_of(uid: str) -> str:
    from pydicom.uid import UID

    return UID(uid).name


def _why_no_image(path: str, header: ParsedHeader) -> NoImage | BrokenFile | None:
    """Why a file is no image of a scanner, or cannot be told whose; None if it can."""
    values = header.values
    sop_class = text_of(values.get("SOPClassUID"))
    if header.meta.get("MediaStorageSOPClassUID") == DICOMDIR_CLASS:
        return NoImage(path, "DICOMDIR")
    if sop_class.startswith(SECONDARY_CAPTURE):
        return NoImage(path, "secondary capture")
    if not values.get("Rows") and not _holds_images(sop_class):
        return NoImage(path, _name_of(sop_class) if sop_class else "no image")
    for name in (*_IDS, "Rows"):
        if not values.get(name):
            return BrokenFile(path, text_of(values.get("PatientID")) or None, f"has no {name}")
    return None


def _images(
    path: str, values: Mapping[str, Any], stored: StoredPixels
) -> list[ImageHeader] | BrokenFile:
    frames = values.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        count = int(values.get("NumberOfFrames") or 1)
        if count > 1 and text_of(values.get("Modality")) == "MR":  # others are left out anyway
            reason = f"{count} frames without a position for each"
            return BrokenFile(path, text_of(values["PatientID"]), reason)
        return [_image(path, None, (values,), stored)]
    shared = values.get("SharedFunctionalGroupsSequence")
    of_all = _functions(shared[0]) if shared else {}
    return [
        _image(path, number, (_functions(frame), of_all, values), stored)
        for number, frame in enumerate(frames)
    ]


def _functions(groups: Any) -> dict[str, Any]:
    """The elements of a frame's functional groups, those that are read."""
    sequences = values_of(groups, _names_of(*_GROUPS))
    found: dict[str, Any] = {}
    for name, items in sequences.items():
        if items:
            found |= values_of(items[0], _names_of(*_GROUPS[name]))
    return found


def _image(
    path: str, number: int | None, places: tuple[Mapping[str, Any], ...], stored: StoredPixels
) -> ImageHeader:
    """Args: places: where an element is looked for; the last is the header itself."""
    header = places[-1]

    def value(*names: str) -> Any:
        for place in places:
            for name in names:
                found = place.get(name)
                if found not in (None, ""):
                    return found
        return None

    image_type = texts(value("ImageType", "FrameType"))
    sequence = [value(name) for name in ("ScanningSequence", "SequenceVariant", "SequenceName")]
    spacing = numbers(value("PixelSpacing"), 2)
    protocol = text_of(header.get("ProtocolName"))
    return ImageHeader(
        path=path,
        frame=number,
        sop_instance_uid=str(header["SOPInstanceUID"]),
        patient_id=text_of(header["PatientID"]),
        study_uid=str(header["StudyInstanceUID"]),
        study_date=text_of(header.get("StudyDate")) or None,
        series_uid=str(header["SeriesInstanceUID"]),
        series_number=whole_number(header.get("SeriesNumber")),
        description=text_of(header.get("SeriesDescription")) or protocol,
        protocol=protocol,
        modality=text_of(header.get("Modality")),
        image_type=tuple(text.upper() for text in image_type),
        sequence=" ".join(text for part in sequence for text in texts(part)),
        contrast=_names_agent(value("ContrastBolusAgent"))
        or bool(header.get("ContrastBolusAgentSequence")),  # of Enhanced MR
        repetition_time=number_of(value("RepetitionTime")),
        echo_time=number_of(value("EchoTime", "EffectiveEchoTime")),
        inversion_time=number_of(value("InversionTime", "InversionTimes")),
        frame_of_reference=text_of(header.get("FrameOfReferenceUID")) or None,
        orientation=_directions(value("ImageOrientationPatient")),
        position=numbers(value("ImagePositionPatient"), 3),
        rows=int(header["Rows"]),
        columns=int(header["Columns"]),
        spacing=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        echo_number=whole_number(value("EchoNumbers")),
        b_value=number_of(value("DiffusionBValue")),
        temporal_position=whole_number(
            value("TemporalPositionIdentifier", "TemporalPositionIndex")
        ),
        acquisition=whole_number(header.get("AcquisitionNumber")),
        trigger_time=number_of(header.get("TriggerTime")),
        transfer_syntax=_name_of(stored.syntax_uid) if stored.syntax_uid else "unknown",
        colour=int(header.get("SamplesPerPixel") or 1) != 1,
        rescale=(
            number_of(value("RescaleSlope")) or 1.0,  # 0 is written by some who mean none
            number_of(value("RescaleIntercept")) or 0.0,
        ),
        pixels=stored,
    )


def _directions(value: Any) -> tuple[float, ...] | None:
    """Direction cosines of row and column; None if these are no unit vectors at right angles."""
    found = numbers(value, 6)
    if found is None:
        return None
    row, column = found[:3], found[3:]
    products = (_dot(row, row) - 1, _dot(column, column) - 1, _dot(row, column))
    return found if max(map(abs, products)) < _ROUNDING else None


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _names_agent(value: Any) -> bool:
    """Whether a contrast agent is named; some scanners write `NO` where there was none."""
    text = str(value or "").strip().lower()
    return text not in ("", "no", "none", "n", "n/a", "na", "without")
