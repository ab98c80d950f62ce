"""DICOM series of real scanners against known values, if they lie beside the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from segmodel.core.grid import RAS_TO_LPS, Grid
from segmodel.inference.predictor import Predictor
from segmodel.sources.dicom import DicomOptions, scan_folder
from segmodel.sources.dicom_headers import read_headers
from segmodel.sources.dicom_image import ImageHeader
from segmodel.sources.dicom_pixels import read_pixels
from segmodel.sources.dicom_stacks import Stack, stacks_of
from segmodel.sources.nifti import NiftiOptions, open_nifti
from segmodel.sources.series_rules import load_rules
from segmodel.storage import store
from tests.support import standin

DICOM = Path(__file__).parents[4] / "shared" / "scans" / "dicom"
pytestmark = pytest.mark.skipif(not DICOM.is_dir(), reason="no real scans beside the checkout")

TRUTHS = (
    "failing/slicecount/001",
    "generic/anatomical/002_non_isotropic",
    "generic/compressed_jpegls/001",
    "generic/compressed_rle/001",
    "philips_enhanced/anatomical/001",
    "siemens_multiframe/anatomical/001",
)


def images_of(folder: Path) -> list[ImageHeader]:
    found = [read_headers(str(folder), path) for path, _ in store.walk(str(folder))]
    return [image for images in found if isinstance(images, list) for image in images]


def in_archive_orientation(voxels: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    reorientation = grid.reorientation_to_archive()
    return reorientation.apply(voxels), grid.reoriented(reorientation)


def assert_same(folder: Path, stack: Stack, truth: Path, tolerance: float = 1e-4) -> None:
    voxels, grid = in_archive_orientation(read_pixels(str(folder), stack.images), stack.grid)
    image = nibabel.load(truth)
    expected = np.asanyarray(image.dataobj)
    expected = expected.reshape(expected.shape[:3])
    right, place = in_archive_orientation(expected, Grid(expected.shape, RAS_TO_LPS @ image.affine))
    assert voxels.shape == right.shape
    assert np.abs(voxels - right).max() <= tolerance * max(1.0, np.abs(right).max())
    assert np.abs(grid.affine - place.affine).max() < 1e-3


@pytest.mark.parametrize("name", TRUTHS)
def test_voxels_and_affine_are_those_of_the_ground_truth(name: str) -> None:
    folder = DICOM / "series" / name
    (stack,), problems = stacks_of(images_of(folder))
    assert problems == []
    assert_same(folder, stack, DICOM / "series" / f"{name}_ground_truth.nii.gz")


def test_pixels_of_nine_files_in_seven_transfer_syntaxes_are_equal() -> None:
    folder = DICOM / "syntaxes" / "In"
    images = images_of(folder)
    assert len(images) == 9
    assert len({image.transfer_syntax for image in images}) == 7
    first, *others = (read_pixels(str(folder), [image]) for image in images)
    assert all(np.array_equal(first, other) for other in others)


def test_an_oblique_slab_has_its_three_different_spacings() -> None:
    (stack,), _ = stacks_of(images_of(DICOM / "t1w_slab"))
    assert len(stack.images) == 64
    assert stack.grid.spacing_mm == pytest.approx((0.6667, 0.6667, 0.7), abs=1e-4)
    to_next_slice = stack.grid.affine[:3, 0]
    cosine = abs(to_next_slice[2]) / np.linalg.norm(to_next_slice)
    assert np.degrees(np.arccos(cosine)) == pytest.approx(7.7, abs=0.1)


def test_one_slice_is_missing_between_two_of_a_ct() -> None:
    (stack,), _ = stacks_of(images_of(DICOM / "series" / "failing" / "sliceincrement" / "001"))
    assert stack.slice_index == (0, 2, 3, 4) or stack.slice_index == (0, 1, 2, 4)
    assert stack.grid.spacing_mm[0] == pytest.approx(5, abs=1e-4)


def test_orientations_that_do_not_fit_together_are_never_one_volume() -> None:
    stacks, _ = stacks_of(images_of(DICOM / "series" / "failing" / "sliceorientation" / "001"))
    assert [len(stack.images) for stack in stacks] == [2, 2]


DCM2NIIX = shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """The slab as dcm2niix, the field's reference, writes it as NIfTI."""
    if DCM2NIIX is None:
        pytest.skip("dcm2niix is not installed")
    command = [DCM2NIIX, "-o", str(tmp_path), "-f", "P_t1", "-z", "n", str(DICOM / "t1w_slab")]
    subprocess.run(command, check=True, capture_output=True)
    (written,) = tmp_path.glob("*.nii")
    return written


def test_geometry_agrees_with_dcm2niix(converted: Path) -> None:
    folder = DICOM / "t1w_slab"
    (stack,), _ = stacks_of(images_of(folder))
    assert_same(folder, stack, converted)


def assert_same_masks(dicom: Path, nifti: Path, pattern: str, folder: Path) -> None:
    """Ingest both as FLAIR, segment eight slices of both with one model, compare every pixel.

    The model marks what is brighter than 185 of 255.
    """
    rules = folder / "rules.yaml"
    rules.write_text("sequences:\n  FLAIR:\n    - {description: '', because: asked for}\n")
    options = DicomOptions(rules=load_rules(str(rules)), any_plane=True)
    nifti_options = NiftiOptions(sequences=(f"FLAIR={pattern}",), any_plane=True)
    sources = (scan_folder(str(dicom), options), open_nifti(str(nifti), nifti_options))
    first, second = (source.read(source.patients()[0]).slices for source in sources)
    assert first.num_rows == second.num_rows > 0
    height, width = first["height"][0].as_py(), first["width"][0].as_py()
    card = standin.card(32 * -(-max(height, width) // 32))
    predictor = Predictor(
        standin.flair_threshold_model(),
        card,
        batch_size=8,
        threshold=0.5,
        device=torch.device("cpu"),
    )
    pixels = [
        np.stack([np.frombuffer(row.as_buffer(), np.uint8) for row in slices["pixels"]])
        for slices in (first, second)
    ]
    assert int((pixels[0] != pixels[1]).sum()) == 0
    some = slice(None, None, -(-first.num_rows // 8))
    masks = [predictor.predict(one[some].reshape(-1, height, width, 3)).mask_nhw for one in pixels]
    assert masks[0].any()
    assert int((masks[0] != masks[1]).sum()) == 0  # differing pixels
    for name in ("row_spacing_mm", "column_spacing_mm", "slice_spacing_mm"):
        assert np.allclose(first[name].to_numpy(), second[name].to_numpy(), atol=1e-3)


@pytest.mark.parametrize("name", TRUTHS)
def test_one_model_gives_the_same_masks_as_on_the_ground_truth(name: str, tmp_path: Path) -> None:
    truth = DICOM / "series" / f"{name}_ground_truth.nii.gz"
    assert_same_masks(DICOM / "series" / name, truth.parent, truth.name, tmp_path)


def test_one_model_gives_the_same_masks_as_on_what_dcm2niix_makes(
    converted: Path, tmp_path: Path
) -> None:
    assert_same_masks(DICOM / "t1w_slab", converted.parent, converted.name, tmp_path)
