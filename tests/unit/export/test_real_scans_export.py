"""Real scans, where they lie beside the checkout: a mask that came in goes out unchanged."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from jobs import export
from segmodel.sources.dicom import DicomOptions, scan_folder
from segmodel.sources.nifti import NiftiOptions, open_nifti
from segmodel.sources.series_rules import load_rules
from tests.support import finished_run
from tests.support.dicom_seg_readers import assert_same_voxels, errors_of, read_by_dcmqi

SHARED = Path(__file__).parents[4] / "shared" / "scans"
SCANS, DICOM = SHARED / "nifti", SHARED / "dicom"
pytestmark = [
    pytest.mark.usefixtures("without_ray"),
    pytest.mark.skipif(not SHARED.is_dir(), reason="no real scans beside the checkout"),
]

BRATS = "BraTS2021_00006/BraTS2021_00006"
CASES = [
    (f"{BRATS}_flair.nii.gz", f"{BRATS}_seg.nii.gz"),
    *(
        (f"FG-6692_clinical/{name}.nii.gz", f"FG-6692_clinical/{name}_brainmask.nii.gz")
        for name in ("flair", "t1", "t1c", "t2")
    ),
    ("odd/anatomical.nii", None),
    ("odd/reoriented_anat_moved.nii", None),
    ("odd/seg-BraTS23_1_mapped.nii.gz", None),
]


def exported(tmp_path: Path, kind: str) -> list[Path]:
    """The files of an export."""
    where = {"archive": "archive", "segmentation": "run", "output": kind}
    places = [f"--{name}={tmp_path / place}" for name, place in where.items()]
    assert export.main([f"--format={kind}", *places, "--tracking=none"]) == 0
    return sorted((tmp_path / kind / kind).iterdir())


@pytest.mark.parametrize(("scan", "mask"), CASES, ids=[scan for scan, _ in CASES])
def test_a_real_mask_comes_back_voxel_by_voxel_on_its_scan(
    scan: str, mask: str | None, tmp_path: Path
) -> None:
    image = nibabel.load(SCANS / scan)
    source = tmp_path / "scans"
    source.mkdir()
    (source / f"P_flair{''.join(Path(scan).suffixes)}").symlink_to(SCANS / scan)
    if mask is None:  # nobody has drawn one: every third voxel or so
        made = np.random.default_rng(0).random(image.shape) < 0.3
        file = nibabel.Nifti1Image(made.astype(np.uint8), image.affine)
        nibabel.save(file, source / "P_seg.nii.gz")
    else:
        (source / "P_seg.nii.gz").symlink_to(SCANS / mask)
    options = NiftiOptions(channels=("FLAIR",), any_plane=True)
    archive = finished_run.ingest(tmp_path / "archive", open_nifti(str(source), options))
    finished_run.write(archive, tmp_path / "run")
    (file,) = exported(tmp_path, "nifti")
    found = nibabel.load(file)
    truth = np.asarray(nibabel.load(source / "P_seg.nii.gz").dataobj) != 0
    assert truth.any()
    assert np.array_equal(np.asarray(found.dataobj), truth)
    assert found.shape == image.shape
    assert np.allclose(found.affine, image.affine, rtol=0, atol=1e-5)
    assert np.allclose(found.get_qform(), image.affine, rtol=0, atol=1e-3)


ALL_ARE_FLAIR = """
leave_out:
  - {because: localizer, image_type: [LOCALIZER]}
sequences:
  FLAIR:
    - {description: '.*'}
"""


def disc(row: dict[str, Any]) -> np.ndarray:
    """A disc right of the middle, in most slices."""
    rows, columns = np.mgrid[: row["height"], : row["width"]]
    radius = min(row["height"], row["width"]) / 5
    away = np.hypot(rows - 0.35 * row["height"], columns - 0.6 * row["width"])
    return (away < radius) & (row["slice_index"] % 7 != 0)


@pytest.mark.parametrize(
    "folder",
    [
        "t1w_slab",
        "series/generic/compressed_jpegls",
        "series/generic/anatomical/002_non_isotropic",
        "series/siemens_multiframe",
        "series/philips_enhanced",
    ],
)
def test_a_segmentation_of_real_images_is_valid_and_lies_on_them(
    folder: str, tmp_path: Path
) -> None:
    (tmp_path / "rules.yaml").write_text(ALL_ARE_FLAIR)
    rules = load_rules(str(tmp_path / "rules.yaml"))
    options = DicomOptions(rules=rules, channels=("FLAIR",), any_plane=True)
    archive = finished_run.ingest(tmp_path / "archive", scan_folder(str(DICOM / folder), options))
    finished_run.write(archive, tmp_path / "run", disc)
    (segmentation,) = exported(tmp_path, "dicom-seg")
    assert errors_of(segmentation) == []
    (mask,) = exported(tmp_path, "nifti")
    assert_same_voxels(read_by_dcmqi(segmentation, tmp_path / "dcmqi"), nibabel.load(mask))
