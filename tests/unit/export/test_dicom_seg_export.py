"""DICOM segmentations: valid, on their images, and with the same voxels for other readers."""

import csv
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from jobs import export
from segmodel.core.errors import ArchiveError, ConfigError, SourceError
from segmodel.sources.dicom import DicomOptions, scan_folder
from segmodel.sources.series_rules import load_rules
from tests.support import dicoms, finished_run
from tests.support.dicom_seg_readers import assert_same_voxels, errors_of, read_by_dcmqi
from tests.support.dicoms import uid

pytestmark = pytest.mark.usefixtures("without_ray")

HEIGHT, WIDTH = 4, 6
C, S = float(np.cos(np.radians(20))), float(np.sin(np.radians(20)))
OBLIQUE = [1.0, 0.0, 0.0, 0.0, C, S]
SAGITTAL = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]


def archived(tmp_path: Path, **options: Any) -> Path:
    settings = DicomOptions(
        rules=load_rules(None), channels=("FLAIR",), percentiles=(0, 100), any_plane=True, **options
    )
    source = scan_folder(str(tmp_path / "scans"), settings)
    return finished_run.ingest(tmp_path / "archive", source)


def pattern(row: dict[str, Any]) -> np.ndarray:
    """Another asymmetric mask in every slice."""
    seed = [row["slice_index"], row["height"], row["width"]]
    return np.random.default_rng(seed).random((row["height"], row["width"])) < 0.3


def flags(tmp_path: Path, *more: str, kind: str = "dicom-seg", output: str = "out") -> list[str]:
    where = {"archive": "archive", "segmentation": "run", "output": output}
    places = [f"--{name}={tmp_path / place}" for name, place in where.items()]
    return [f"--format={kind}", *places, "--tracking=none", *more]


def exported(tmp_path: Path, **options: Any) -> Path:
    """The only segmentation of the archive."""
    finished_run.write(archived(tmp_path), tmp_path / "run", pattern, **options)
    assert export.main(flags(tmp_path)) == 0
    (file,) = (tmp_path / "out/dicom-seg").iterdir()
    return file


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def classic(tmp_path: Path, positions_mm: list[float], **elements: Any) -> None:
    dicoms.series(tmp_path / "scans", "flair", positions_mm, **elements)


SCANS = ["axial", "oblique", "sagittal", "wrong spacing", "enhanced"]


def make(scan: str, tmp_path: Path) -> None:
    """A FLAIR series of 5 slices of 4x6 pixels in P1."""
    steps = [0.0, 5.0, 10.0, 15.0, 20.0]
    if scan == "enhanced":
        pixels = np.arange(5 * HEIGHT * WIDTH, dtype=np.uint16).reshape(5, HEIGHT, WIDTH)
        # The frames are not in the order of their positions.
        dicoms.enhanced(tmp_path / "scans/e.dcm", pixels, [10.0, 0.0, 20.0, 5.0, 15.0])
        return
    if scan == "wrong spacing":
        classic(tmp_path, steps, SpacingBetweenSlices=4.0, SliceThickness=4.0)
        return
    orientation = {"oblique": OBLIQUE, "sagittal": SAGITTAL}.get(scan, list(dicoms.AXIAL))
    normal = np.cross(orientation[:3], orientation[3:])
    for number, step in enumerate(steps):
        pixels = np.full((HEIGHT, WIDTH), 100, np.uint16)
        pixels[0, 0] = 1000 + number
        dicoms.save(
            tmp_path / f"scans/{number}.dcm",
            pixels,
            SOPInstanceUID=uid(f"{scan} {number}"),
            ImageOrientationPatient=orientation,
            ImagePositionPatient=[round(float(mm), 6) for mm in normal * step + [7, -3, 11]],
        )


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


@pytest.mark.filterwarnings("ignore:Invalid value for VR AS")
def test_values_of_the_patient_that_are_not_valid_are_left_out_with_a_note(tmp_path: Path) -> None:
    classic(tmp_path, [0.0, 5.0], PatientAge="42", PatientWeight="70.5", StudyTime="101112.5")
    file = exported(tmp_path)
    assert errors_of(file) == []
    segmentation = pydicom.dcmread(file)
    assert "PatientAge" not in segmentation
    assert (segmentation.PatientWeight, segmentation.StudyTime) == (70.5, "101112.5")
    (row,) = rows(tmp_path / "out/exported.csv")
    assert row["note"] == "left out, as their values are not valid DICOM: PatientAge"


def test_a_header_that_breaks_the_library_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> None:
        raise KeyError("odd")

    classic(tmp_path, [0.0, 5.0])
    finished_run.write(archived(tmp_path), tmp_path / "run", pattern)
    monkeypatch.setattr("highdicom.seg.Segmentation", broken)
    assert export.main(flags(tmp_path)) == 3
    (row,) = rows(tmp_path / "out/rejects.csv")
    assert "no segmentation of its images can be made: 'odd'" in row["reason"]


@pytest.mark.parametrize("characters", ["ISO_IR 100", "ISO 2022 IR 100"])
def test_names_stay_readable_whatever_the_character_set(characters: str, tmp_path: Path) -> None:
    classic(
        tmp_path, [0.0, 5.0], SpecificCharacterSet=characters, PatientName="M\u00fcller^J\u00f8rn"
    )
    file = exported(tmp_path)
    assert errors_of(file) == []
    assert str(pydicom.dcmread(file).PatientName) == "M\u00fcller^J\u00f8rn"


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("gone", "flair_1.dcm"),
        ("another image", "not those that were ingested"),
        ("moved", "have other positions"),
        ("another patient", "another patient id"),
        ("garbage", "not those that were ingested"),
    ],
)
def test_images_that_are_gone_or_changed_are_a_reject(
    harm: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classic(tmp_path, [0.0, 5.0, 10.0])
    finished_run.write(archived(tmp_path), tmp_path / "run", pattern)
    path = tmp_path / "scans/flair_1.dcm"
    image = pydicom.dcmread(path)
    if harm == "gone":
        path.unlink()
    elif harm == "garbage":
        path.write_bytes(b"no image")
    else:
        changed = {"another image": {"SOPInstanceUID": "1.2.3"}, "moved": {}, "another patient": {}}
        for name, value in changed[harm].items():
            setattr(image, name, value)
        if harm == "another patient":
            image.PatientID = "P2"
        image.save_as(path)
        if harm == "moved":
            for one in (tmp_path / "scans").iterdir():
                image = pydicom.dcmread(one)
                image.ImagePositionPatient[0] += 30
                image.save_as(one)
    assert export.main(flags(tmp_path)) == 3
    assert rows(tmp_path / "out/exported.csv") == []
    (row,) = rows(tmp_path / "out/rejects.csv")
    assert reason in row["reason"]
    assert row["patient_id"] == "P1"
    assert "more than 1.0% were left out" in capsys.readouterr().err


@pytest.mark.parametrize("scan", ["axial", "sagittal", "enhanced"])
def test_images_that_moved_are_found_in_the_folder_that_is_named(scan: str, tmp_path: Path) -> None:
    make(scan, tmp_path)
    finished_run.write(archived(tmp_path), tmp_path / "run", pattern)
    assert export.main(flags(tmp_path, output="before")) == 0
    moved = tmp_path / "moved/deep"
    moved.mkdir(parents=True)
    for number, path in enumerate((tmp_path / "scans").iterdir()):
        path.rename(moved / f"renamed {number}")
        shutil.copy(moved / f"renamed {number}", moved / f"copy {number}")
    other = np.full((HEIGHT, WIDTH), 7, np.uint16)
    dicoms.save(moved / "other series", other, SeriesInstanceUID=uid("other"))
    (moved / "notes.txt").write_text("of the user")
    assert export.main(flags(tmp_path)) == 3
    more = [f"--dicom-source={tmp_path / 'moved'}", "--overwrite"]
    assert export.main(flags(tmp_path, *more)) == 0
    before, after = (
        pydicom.dcmread(*(tmp_path / name / "dicom-seg").iterdir()) for name in ("before", "out")
    )
    assert after.PixelData == before.PixelData
    assert after.ReferencedSeriesSequence == before.ReferencedSeriesSequence
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty: no DICOM image below it"):
        export.main(flags(tmp_path, f"--dicom-source={tmp_path / 'empty'}", "--overwrite"))
    assert len(rows(tmp_path / "out/exported.csv")) == 1


def test_hashed_ids_are_never_undone(tmp_path: Path) -> None:
    classic(tmp_path, [0.0, 5.0, 10.0])
    finished_run.write(archived(tmp_path, hash_key=b"0123456789abcdef"), tmp_path / "run", pattern)
    with pytest.raises(ArchiveError, match="--hash-ids"):
        export.main(flags(tmp_path))
    assert not (tmp_path / "out").exists()
    assert export.main(flags(tmp_path, kind="nifti")) == 0
    names = [path.name for path in (tmp_path / "out/nifti").iterdir()]
    assert names
    assert not any("P1" in name for name in names)


def test_hashed_ids_of_a_sagittal_scan_are_a_reject(tmp_path: Path) -> None:
    make("sagittal", tmp_path)  # its slices are no images, and do not tell that ids are hashed
    finished_run.write(archived(tmp_path, hash_key=b"0123456789abcdef"), tmp_path / "run", pattern)
    assert export.main(flags(tmp_path)) == 3
    assert not (tmp_path / "out/dicom-seg").exists()


def test_an_archive_that_was_not_made_from_dicom_is_refused(tmp_path: Path) -> None:
    from tests.support import scans

    scans.write(tmp_path / "archive", scans.scans("A", 3))
    finished_run.write(tmp_path / "archive", tmp_path / "run")
    with pytest.raises(ArchiveError, match="not made from DICOM images"):
        export.main(flags(tmp_path))


def test_flags_of_nifti_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--with-images does not go with --format dicom-seg"):
        export.main(flags(tmp_path, "--with-images"))
