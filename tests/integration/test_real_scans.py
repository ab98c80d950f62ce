"""jobs.ingest on real scans, where they lie beside the checkout."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import ingest
from segmodel.archive.reader import Archive
from segmodel.archive.slice_file import read_series
from tests.support import scans

SCANS = Path(__file__).parents[3] / "shared" / "scans"
pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.skipif(not SCANS.is_dir(), reason="no real scans beside the checkout"),
]


def archive_of(folder: Path, *flags: str) -> tuple[list[dict], list[dict], list[dict]]:
    """Slices, series and rejects of an ingest."""
    assert ingest.main([*flags, "--archive", str(folder), "--tracking", "none"]) in (0, 3)
    slices = [row for path in scans.files(folder) for row in pq.read_table(path).to_pylist()]
    series = read_series(str(folder), Archive(str(folder)).files).to_pylist()
    rejects = folder / "rejects"
    return slices, series, pq.read_table(rejects).to_pylist() if rejects.exists() else []


def tumor_ml(slices: list[dict]) -> float:
    row = slices[0]
    voxels = sum(np.frombuffer(one["mask"], np.uint8).sum() for one in slices if one["mask"])
    spacing = ("row_spacing_mm", "column_spacing_mm", "slice_spacing_mm")
    return float(voxels * np.prod([row[name] for name in spacing]) / 1000)


def test_a_brats_patient_has_the_volume_of_its_expert_s_labels(tmp_path: Path) -> None:
    slices, series, _ = archive_of(
        tmp_path, "--source", f"{SCANS}/nifti/BraTS2021_00006", "--format", "nifti"
    )
    assert len(slices) == 155
    assert tumor_ml(slices) == pytest.approx(137.911, rel=1e-4)
    assert series[0]["label_voxels"] == [(1, 25506), (2, 85957), (4, 26448)]
    windows = {one["name"]: one["window_high"] for one in series[0]["channels"]}
    assert windows["post-contrast"] < 15_956 / 2  # a few bright voxels do not decide


def test_four_oblique_grids_of_one_patient_have_the_same_brain(tmp_path: Path) -> None:
    folder = f"{SCANS}/nifti/FG-6692_clinical"
    for name in ("flair", "t1", "t1c", "t2"):
        slices, series, _ = archive_of(
            tmp_path / name,
            *("--source", folder, "--format", "nifti", "--channels", "FLAIR"),
            *("--sequences", f"FLAIR={name}.nii.gz", "--mask", f"{name}_brainmask.nii.gz"),
        )
        assert len(slices) == 26
        assert series[0]["source_axes"] == "LAS"
        assert 1570.1 <= tumor_ml(slices) <= 1570.6, name


def test_sequences_on_other_grids_are_laid_over_flair(tmp_path: Path) -> None:
    sequences = ("FLAIR=flair.nii.gz", "pre-contrast=t1.nii.gz", "post-contrast=t1c.nii.gz")
    _, series, _ = archive_of(
        tmp_path,
        *("--source", f"{SCANS}/nifti/FG-6692_clinical", "--format", "nifti"),
        *("--sequences", *sequences),
    )
    because = [one["because"] for one in series[0]["channels"]]
    assert ["interpolated" in text for text in because] == [True, False, True]


def test_odd_files_are_read_or_say_why_not(tmp_path: Path) -> None:
    slices, series, rejects = archive_of(
        tmp_path, "--source", f"{SCANS}/nifti/odd", "--format", "nifti", "--sequences", "FLAIR=*"
    )
    assert {row["patient_id"] for row in series} == {
        "anatomical",
        "reoriented_anat_moved",
        "seg-BraTS23_1_mapped",
    }
    reasons = {Path(row["source_uri"]).name: row["reason"] for row in rejects}
    for name in ("example4d.nii.gz", "functional.nii", "example_nifti2.nii.gz"):
        assert "volumes over time" in reasons[name]
    assert len(slices) == 25 + 22 + 155


def test_a_mask_whose_affine_was_lost_is_a_reject_of_the_mask(tmp_path: Path) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    flair = SCANS / "nifti/BraTS2021_00006/BraTS2021_00006_flair.nii.gz"
    (source / "P_flair.nii.gz").symlink_to(flair)
    (source / "P_seg.nii.gz").symlink_to(SCANS / "nifti/odd/seg-BraTS23_1_mapped.nii.gz")
    slices, _, rejects = archive_of(
        tmp_path / "archive", "--source", str(source), "--format", "nifti"
    )
    assert all(one["mask"] is None for one in slices)
    assert rejects[0]["stage"] == "mask"
    assert "has another position than its image" in rejects[0]["reason"]


def test_a_dicom_slab_becomes_64_slices_with_its_three_spacings(tmp_path: Path) -> None:
    slices, series, _ = archive_of(
        tmp_path,
        *("--source", f"{SCANS}/dicom/t1w_slab", "--format", "dicom"),
        *("--channels", "pre-contrast"),
    )
    assert [row["slice_index"] for row in slices] == list(range(1, 65))
    names = ("row_spacing_mm", "column_spacing_mm", "slice_spacing_mm")
    assert [slices[0][name] for name in names] == pytest.approx([0.6667, 0.7, 0.6667], abs=1e-4)
    assert (slices[0]["height"], slices[0]["width"]) == (384, 274)
    assert all(row["sop_instance_uid"] for row in slices)
    assert str(series[0]["study_date"]) == "2013-07-17"


def test_what_is_no_series_of_a_brain_is_left_out_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--source", f"{SCANS}/dicom", "--format", "dicom", "--archive", str(tmp_path / "a")]
    assert ingest.main([*flags, "--any-plane", "--tracking", "none", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "Siemens mosaic" in printed
    assert "modality CT, not MR" in printed
    assert not (tmp_path / "a").exists()
