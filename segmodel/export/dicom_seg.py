"""The mask of a series as a DICOM segmentation of the images that it was made of."""

import copy
import io
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segmodel.export.dicom_images import SourceImages, find_images
from segmodel.export.records import RESEARCH_USE, Model, SeriesFiles, SeriesInput, Target
from segmodel.export.series_mask import SeriesMask
from segmodel.sources.base import RejectError
from segmodel.sources.dicom_image import ImageHeader
from segmodel.sources.dicom_stacks import Stack

LABEL = "FLAIR abnormality of glioma"
SERIES_DESCRIPTION = "segmodel glioma - RESEARCH USE, NOT FOR DIAGNOSIS"
SERIES_NUMBER = 1000
"""Added to the number of the series that is segmented."""

_PATIENT = ("PatientName", "PatientBirthDate", "PatientSex")
_STUDY = ("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName")
_NEEDED = (*_PATIENT, *_STUDY)
"""Elements that highdicom wants to copy; they may be empty."""

_COPIED_GROUPS = (0x0008, 0x0010, 0x0012)
"""Of the elements of patient, study and clinical trial, which highdicom copies."""

_TEXT_VRS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UT")


def encode(series: SeriesInput, target: Target) -> SeriesFiles:
    """One DICOM-SEG file with a frame for each image whose mask is known, with tumor or without.

    Raises:
        RejectError: the images cannot be found again, or no segmentation can be made of them.
    """
    if series.known is None or series.known["source_format"] != "dicom":
        raise RejectError("was not made from DICOM images; --format nifti exports it")
    source = find_images(series)
    mask, images = _known_frames(series.found, source.stack)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            notes = _clean(source.headers.values())
            content = _to_bytes(mask, images, source, target.model, len(series.found.unknown))
        except Exception as error:
            raise RejectError(f"no segmentation of its images can be made: {error}") from error
    name = f"{series.stem}_seg{'_incomplete' if series.found.unknown else ''}.dcm"
    return SeriesFiles(name, {name: content}, "; ".join(notes))


def _clean(headers: Iterable[Any]) -> list[str]:
    """Remove invalid values from headers and add what highdicom needs; return notes of it."""
    notes, invalid = [], set()
    for header in headers:
        for tag in [tag for tag in header.keys() if tag.group in _COPIED_GROUPS]:  # noqa: SIM118
            if not _is_valid(header[tag]):
                invalid.add(header[tag].keyword or str(tag))
                del header[tag]
        for name in _NEEDED:
            if name not in header:
                setattr(header, name, "")
        if "FrameOfReferenceUID" not in header:
            notes = ["the images have no frame of reference: the segmentation has one of its own"]
    if invalid:
        notes.append(f"left out, as their values are not valid DICOM: {', '.join(sorted(invalid))}")
    return notes


def _is_valid(element: Any) -> bool:
    from pydicom.config import RAISE
    from pydicom.valuerep import validate_value

    if element.VR not in _TEXT_VRS:
        return True
    values = element.value if element.VM > 1 else [element.value]
    try:
        for value in values:
            validate_value(element.VR, "" if value is None else str(value), RAISE)
    except ValueError:
        return False
    return True


def _known_frames(
    found: SeriesMask, stack: Stack
) -> tuple[npt.NDArray[np.uint8], list[ImageHeader]]:
    """The masks of images that are known completely, (images, rows, columns), and the images."""
    reorientation, series_grid = found.series_grid.reorientation, found.series_grid
    known_dhw = np.ones(series_grid.grid.shape, bool)
    known_dhw[[index - series_grid.first_index for index in found.unknown]] = False
    mask, known = reorientation.undo(found.mask_dhw), reorientation.undo(known_dhw)
    there = list(stack.slice_index)
    whole = np.asarray(known[there].all(axis=(1, 2)))
    if not whole.any():
        raise RejectError(f"{found.note}; they affect each of its images")
    images = [image for image, ok in zip(stack.images, whole.tolist(), strict=True) if ok]
    return np.ascontiguousarray(mask[there][whole], np.uint8), images


def _to_bytes(
    mask: npt.NDArray[np.uint8],
    images: Sequence[ImageHeader],
    source: SourceImages,
    model: Model,
    unknown: int,
) -> bytes:
    import highdicom
    from highdicom.seg import Segmentation, SegmentationTypeValues

    multi_frame = images[0].frame is not None
    step = None if source.stack.no_volume_reason else source.stack.grid.spacing_mm[0]
    prepared = _prepare(images, source, step)
    some = f"; {unknown} slices without a mask" if unknown else ""
    segmentation = Segmentation(
        source_images=prepared,
        pixel_array=mask,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(model)],
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER + (images[0].series_number or 0),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="segmodel",
        manufacturer_model_name="segmodel",
        software_versions=model.version,
        device_serial_number=model.weights_sha256[:16],
        content_label="SEGMODEL",
        content_description=f"{RESEARCH_USE}{some}",
        series_description=SERIES_DESCRIPTION,
        # UTF-8: sources name character sets that highdicom refuses.
        specific_character_set="ISO_IR 192",
        # A frame for each image that was looked at: one that is left out is not known.
        omit_empty_frames=False,
    )
    segmentation.ContentQualification = "RESEARCH"
    if multi_frame:
        _name_frames(segmentation, images)
    file = io.BytesIO()
    segmentation.save_as(file)
    return file.getvalue()


def _describe(model: Model) -> Any:
    """What the segment is and what made it.

    SNOMED CT has no concept for all that is bright in FLAIR around a glioma: tumor, infiltrated
    tissue and edema together. `Lesion` is the one that claims none of them alone.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name="segmodel",
        family=codes.DCM.ArtificialIntelligence,
        version=f"{model.version} weights {model.weights_sha256[:16]}",
        parameters={
            "weights_sha256": model.weights_sha256,
            "threshold": f"{model.threshold:g}",
            "postprocessing": model.postprocessing,
        },
    )
    return SegmentDescription(
        segment_number=1,
        segment_label=LABEL,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        anatomic_regions=[codes.SCT.Brain],
    )


def _prepare(images: Sequence[ImageHeader], source: SourceImages, step: float | None) -> list[Any]:
    """Copy the source's headers in the order of the images, with the measured distances.

    highdicom copies spacing and orientation from them, and their SpacingBetweenSlices may be wrong.
    """
    import highdicom

    frame_of_reference = highdicom.UID()
    paths = list(dict.fromkeys(image.path for image in images))
    prepared = []
    for path in paths:
        made = copy.deepcopy(source.headers[path])
        if "FrameOfReferenceUID" not in made:
            made.FrameOfReferenceUID = frame_of_reference
        if images[0].frame is None:
            made.ImageOrientationPatient = list(images[0].orientation or ())
            _set_distances(made, images[0], step)
        prepared.append(made)
    if images[0].frame is not None:
        if len(prepared) > 1:
            raise ValueError(f"they are frames of {len(prepared)} multi-frame files")
        _keep_frames(prepared[0], images, step)
    return prepared


def _set_distances(measures: Any, image: ImageHeader, step: float | None) -> None:
    from pydicom.valuerep import format_number_as_ds

    measures.PixelSpacing = [format_number_as_ds(mm) for mm in image.spacing or ()]
    if step is not None:
        measures.SpacingBetweenSlices = format_number_as_ds(step)
    elif "SpacingBetweenSlices" in measures:
        del measures.SpacingBetweenSlices
    if not measures.get("SliceThickness"):
        if step is None:
            raise ValueError("they have neither a slice thickness nor one distance between slices")
        measures.SliceThickness = format_number_as_ds(step)


def _keep_frames(dataset: Any, images: Sequence[ImageHeader], step: float | None) -> None:
    """Reduce a multi-frame header to some frames, with shared values where highdicom wants them."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence as Items

    frames = dataset.PerFrameFunctionalGroupsSequence
    first = frames[images[0].frame]
    shared = dataset.get("SharedFunctionalGroupsSequence") or Items([Dataset()])
    for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if name not in shared[0]:
            setattr(shared[0], name, Items([copy.deepcopy(first.get(name)[0])]))
    _set_distances(shared[0].PixelMeasuresSequence[0], images[0], step)
    dataset.SharedFunctionalGroupsSequence = shared
    dataset.PerFrameFunctionalGroupsSequence = Items([frames[image.frame] for image in images])
    dataset.NumberOfFrames = len(images)


def _name_frames(segmentation: Any, images: Sequence[ImageHeader]) -> None:
    """Replace the numbers among the kept frames by the frames' numbers in their file."""
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in frame.DerivationImageSequence:
            for item in derivation.SourceImageSequence:
                image = images[int(item.ReferencedFrameNumber) - 1]
                item.ReferencedFrameNumber = int(image.frame or 0) + 1
