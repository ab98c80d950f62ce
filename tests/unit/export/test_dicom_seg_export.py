"""DICOM segmentations: valid, on their images, and with the same voxels for other readers."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from jobs import export
from tests.support import finished_run
from tests.support.dicom_seg_readers import assert_same_voxels, errors_of, read_by_dcmqi
from tests.support.dicom_seg_scans import (
    HEIGHT,
    SCANS,
    WIDTH,
    archived,
    classic,
    exported,
    flags,
    make,
    pattern,
    rows,
)
from tests.support.dicoms import uid

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.mark.parametrize("scan", SCANS)
def test_a_segmentation_is_valid_and_lies_where_the_nifti_mask_lies(
    scan: str, tmp_path: Path
) -> None:
    make(scan, tmp_path)
    file = exported(tmp_path)
    assert errors_of(file) == []
    assert export.main(flags(tmp_path, kind="nifti", output="nifti-out")) == 0
    (mask,) = (tmp_path / "nifti-out/nifti").iterdir()
    ours = nibabel.load(mask)
    tumor_voxels = np.count_nonzero(np.asarray(ours.dataobj))
    assert tumor_voxels > 10
    assert_same_voxels(read_by_dcmqi(file, tmp_path / "dcmqi"), ours)
    (row,) = rows(tmp_path / "out/exported.csv")
    assert int(row["tumor_voxels"]) == tumor_voxels


@pytest.mark.parametrize("scan", SCANS)
def test_every_frame_names_the_image_that_it_is_the_mask_of(scan: str, tmp_path: Path) -> None:
    make(scan, tmp_path)
    segmentation = pydicom.dcmread(exported(tmp_path))
    if scan == "enhanced":
        source = pydicom.dcmread(tmp_path / "scans/e.dcm")
        frames = source.PerFrameFunctionalGroupsSequence
        places = {
            (source.SOPInstanceUID, number): frame.PlanePositionSequence[0].ImagePositionPatient
            for number, frame in enumerate(frames, 1)
        }
    else:
        images = [pydicom.dcmread(path) for path in (tmp_path / "scans").iterdir()]
        places = {(one.SOPInstanceUID, None): one.ImagePositionPatient for one in images}
    assert int(segmentation.NumberOfFrames) == 5
    named = set()
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        item = frame.DerivationImageSequence[0].SourceImageSequence[0]
        key = (item.ReferencedSOPInstanceUID, item.get("ReferencedFrameNumber"))
        named.add(key)
        assert frame.PlanePositionSequence[0].ImagePositionPatient == places[key]
    assert named == places.keys()


def test_the_measured_distance_of_slices_counts_and_not_what_a_header_claims(
    tmp_path: Path,
) -> None:
    classic(tmp_path, [0.0, 5.0, 10.0], SpacingBetweenSlices=4.0, SliceThickness=4.0)
    (shared,) = pydicom.dcmread(exported(tmp_path)).SharedFunctionalGroupsSequence
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == 5.0
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [0.5, 0.25]


def test_what_it_shows_and_what_made_it_is_coded(tmp_path: Path) -> None:
    classic(tmp_path, [0.0, 5.0, 10.0], StudyID="S7", PatientSex="F", AccessionNumber="A1")
    segmentation = pydicom.dcmread(exported(tmp_path))
    (segment,) = segmentation.SegmentSequence

    def code(name: str) -> tuple[str, str]:
        (item,) = segment[name].value
        return item.CodingSchemeDesignator, item.CodeValue

    assert code("SegmentedPropertyCategoryCodeSequence") == ("SCT", "49755003")
    assert code("SegmentedPropertyTypeCodeSequence") == ("SCT", "52988006")
    assert code("AnatomicRegionSequence") == ("SCT", "12738006")
    assert segment.SegmentLabel == "FLAIR abnormality of glioma"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (
        "segmodel",
        "0.0 weights abababababababab",
    )
    assert "weights_sha256=" + "ab" * 32 in algorithm.AlgorithmParameters
    assert segmentation.ContentDescription == "research use, not for diagnosis"
    assert "NOT FOR DIAGNOSIS" in segmentation.SeriesDescription
    assert segmentation.ContentQualification == "RESEARCH"
    assert (segmentation.PatientID, segmentation.PatientName) == ("P1", "Secret^Name")
    assert (segmentation.StudyID, segmentation.AccessionNumber) == ("S7", "A1")
    assert segmentation.PatientSex == "F"
    assert segmentation.StudyInstanceUID == uid("study")
    assert segmentation.FrameOfReferenceUID == uid("frame")
    assert segmentation.SeriesInstanceUID != uid("flair")
    assert segmentation.SeriesNumber == 1005


def test_an_image_without_a_mask_has_no_frame_and_one_without_tumor_has_an_empty_one(
    tmp_path: Path,
) -> None:
    classic(tmp_path, [0.0, 5.0, 10.0, 15.0])
    archive = archived(tmp_path)
    ids = [f"P1/{uid('flair')}/{number}" for number in (1, 2, 3, 4)]

    def mask_of(row: dict[str, Any]) -> np.ndarray:
        return np.full((HEIGHT, WIDTH), row["slice_id"] != ids[0])

    finished_run.write(archive, tmp_path / "run", mask_of, lost=[ids[2]])
    assert export.main(flags(tmp_path)) == 0
    (file,) = (tmp_path / "out/dicom-seg").iterdir()
    assert file.name.endswith("_seg_incomplete.dcm")
    segmentation = pydicom.dcmread(file)
    tumor = {
        float(frame.PlanePositionSequence[0].ImagePositionPatient[2]): int(pixels.sum())
        for frame, pixels in zip(
            segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True
        )
    }
    assert tumor == {0.0: 0, 5.0: 24, 15.0: 24}
    assert segmentation.ContentDescription.endswith("1 slices without a mask")
    (row,) = rows(tmp_path / "out/exported.csv")
    assert row["note"] == "1 slice without a mask, tumor unknown there: 3"
    assert errors_of(file) == []


def test_a_gap_between_images_is_unknown_and_makes_no_volume(tmp_path: Path) -> None:
    classic(tmp_path, [0.0, 5.0, 15.0, 20.0])
    file = exported(tmp_path)
    assert len(pydicom.dcmread(file).PerFrameFunctionalGroupsSequence) == 4
    assert errors_of(file) == []
    assert export.main(flags(tmp_path, kind="nifti", output="nifti-out")) == 0
    (mask,) = (tmp_path / "nifti-out/nifti").iterdir()
    assert mask.name.endswith("_mask_incomplete.nii.gz")
    assert nibabel.load(mask).shape == (5, HEIGHT, WIDTH)
    assert_same_voxels(read_by_dcmqi(file, tmp_path / "dcmqi"), nibabel.load(mask))
    for output in ("out", "nifti-out"):
        (row,) = rows(tmp_path / output / "exported.csv")
        assert row["note"] == "1 slice without a mask, tumor unknown there: 3"
        assert row["tumor_volume_ml"] == ""


def test_an_unknown_slice_of_a_sagittal_scan_is_in_every_image(tmp_path: Path) -> None:
    make("sagittal", tmp_path)
    archive = archived(tmp_path)
    finished_run.write(archive, tmp_path / "run", pattern, lost=[f"P1/{uid('flair')}/2"])
    assert export.main(flags(tmp_path)) == 3
    (row,) = rows(tmp_path / "out/rejects.csv")
    assert "tumor unknown there: 2; they affect each of its images" in row["reason"]


def test_a_slice_thickness_that_nobody_knows_is_not_made_up(tmp_path: Path) -> None:
    classic(tmp_path, [0.0, 5.0, 12.0], SliceThickness=None)
    finished_run.write(archived(tmp_path), tmp_path / "run", pattern)
    assert export.main(flags(tmp_path)) == 3
    (row,) = rows(tmp_path / "out/rejects.csv")
    assert "neither a slice thickness nor one distance" in row["reason"]


def test_frames_that_are_left_out_do_not_shift_the_numbers_of_the_others(tmp_path: Path) -> None:
    make("enhanced", tmp_path)  # positions 10, 0, 20, 5, 15
    lost = [f"P1/{uid('flair')}/2"]  # that at 5
    finished_run.write(archived(tmp_path), tmp_path / "run", pattern, lost=lost)
    assert export.main(flags(tmp_path)) == 0
    (file,) = (tmp_path / "out/dicom-seg").iterdir()
    assert errors_of(file) == []
    numbers = {
        float(frame.PlanePositionSequence[0].ImagePositionPatient[2]): int(
            frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        )
        for frame in pydicom.dcmread(file).PerFrameFunctionalGroupsSequence
    }
    assert numbers == {0.0: 2, 10.0: 1, 15.0: 5, 20.0: 3}


def test_a_mask_without_tumor_is_a_valid_segmentation(tmp_path: Path) -> None:
    classic(tmp_path, [0.0, 5.0, 10.0])
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    finished_run.write(archived(tmp_path), tmp_path / "run", lambda _: nothing)
    assert export.main(flags(tmp_path)) == 0
    (file,) = (tmp_path / "out/dicom-seg").iterdir()
    assert not pydicom.dcmread(file).pixel_array.any()
    assert errors_of(file) == []


def test_images_at_uneven_distances_are_segmented_and_have_no_volume(tmp_path: Path) -> None:
    classic(tmp_path, [0.0, 5.0, 12.0, 15.0])
    file = exported(tmp_path)
    assert errors_of(file) == []
    (row,) = rows(tmp_path / "out/exported.csv")
    assert row["tumor_volume_ml"] == ""
    assert "uneven distances" in row["note"]
    assert export.main(flags(tmp_path, kind="nifti", output="nifti-out")) == 3
    (reject,) = rows(tmp_path / "nifti-out/rejects.csv")
    assert "uneven distances" in reject["reason"]


def test_images_without_a_frame_of_reference_get_one_with_a_note(tmp_path: Path) -> None:
    classic(tmp_path, [0.0, 5.0, 10.0], FrameOfReferenceUID=None)
    file = exported(tmp_path)
    assert errors_of(file) == []
    (row,) = rows(tmp_path / "out/exported.csv")
    assert "no frame of reference" in row["note"]
