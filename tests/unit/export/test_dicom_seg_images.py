"""Images that a DICOM segmentation is made for: odd values, gone, moved, with hashed ids."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from jobs import export
from segmodel.core.errors import ArchiveError, ConfigError, SourceError
from tests.support import dicoms, finished_run
from tests.support.dicom_seg_readers import errors_of
from tests.support.dicom_seg_scans import (
    HEIGHT,
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
