"""Real NIfTI scans, where they lie beside the checkout: a mask that came in goes out unchanged."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from jobs import export
from segmodel.sources.nifti import NiftiOptions, open_nifti
from tests.support import finished_run

SCANS = Path(__file__).parents[4] / "shared" / "scans" / "nifti"
pytestmark = [
    pytest.mark.usefixtures("without_ray"),
    pytest.mark.skipif(not SCANS.is_dir(), reason="no real scans beside the checkout"),
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
    where = {"archive": archive, "segmentation": tmp_path / "run", "output": tmp_path / "out"}
    places = [f"--{name}={place}" for name, place in where.items()]
    assert export.main(["--format=nifti", *places, "--tracking=none"]) == 0
    found = nibabel.load(tmp_path / "out/nifti/P_mask.nii.gz")
    truth = np.asarray(nibabel.load(source / "P_seg.nii.gz").dataobj) != 0
    assert truth.any()
    assert np.array_equal(np.asarray(found.dataobj), truth)
    assert found.shape == image.shape
    assert np.allclose(found.affine, image.affine, rtol=0, atol=1e-5)
    assert np.allclose(found.get_qform(), image.affine, rtol=0, atol=1e-3)
