"""jobs.export on a real local Ray: NIfTI files on S3, DICOM segmentations of a sagittal scan."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from jobs import export
from segmodel.sources.dicom import DicomOptions, scan_folder
from segmodel.sources.nifti import NiftiOptions, open_nifti
from segmodel.sources.series_rules import load_rules
from segmodel.storage import csv_files, store
from tests.support import dicoms, finished_run, niftis

pytestmark = pytest.mark.usefixtures("local_ray")


def flags(kind: str, folder: Path, output: str) -> list[str]:
    places = [f"--archive={folder / 'archive'}", f"--segmentation={folder / 'run'}"]
    return [f"--format={kind}", *places, f"--output={output}", "--tracking=none"]


def test_masks_go_to_s3_voxel_by_voxel(tmp_path: Path, s3_bucket: str) -> None:
    mask = np.zeros((6, 5, 4), np.uint8)
    mask[0, 1:3, 2], mask[5, 4, 3] = 1, 1
    affine = niftis.spaced(0.9, 0.8, 5.0)
    for patient in ("P1", "P2"):
        niftis.save(tmp_path / f"scans/{patient}_flair.nii.gz", niftis.head(), affine)
        niftis.save(tmp_path / f"scans/{patient}_seg.nii.gz", mask, affine)
    source = open_nifti(str(tmp_path / "scans"), NiftiOptions(channels=("FLAIR",)))
    finished_run.write(finished_run.ingest(tmp_path / "archive", source), tmp_path / "run")
    output = store.join(s3_bucket, "export")
    assert export.main(flags("nifti", tmp_path, output)) == 0
    assert store.list_files(store.join(output, "nifti")) == ["P1_mask.nii.gz", "P2_mask.nii.gz"]
    content = store.read_bytes(store.join(output, "nifti/P2_mask.nii.gz"))
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    assert np.array_equal(np.asarray(image.dataobj), mask)
    assert np.allclose(image.affine, affine)
    rows = csv_files.read_csv(store.join(output, "exported.csv"))
    assert [(row["patient_id"], row["tumor_voxels"]) for row in rows] == [("P1", "3"), ("P2", "3")]
    assert not store.exists(store.join(output, "unfinished"))


def test_the_images_of_a_sagittal_scan_are_found_by_tasks(tmp_path: Path) -> None:
    for number in range(4):
        pixels = np.full((4, 6), 100 + number, np.uint16)
        dicoms.save(
            tmp_path / f"scans/{number}.dcm",
            pixels,
            SOPInstanceUID=dicoms.uid(f"sagittal {number}"),
            ImageOrientationPatient=[0.0, 1.0, 0.0, 0.0, 0.0, -1.0],
            ImagePositionPatient=[2.0 * number, 0.0, 0.0],
        )
    options = DicomOptions(rules=load_rules(None), channels=("FLAIR",), any_plane=True)
    source = scan_folder(str(tmp_path / "scans"), options)
    archive = finished_run.ingest(tmp_path / "archive", source)

    def left_column(row: dict) -> np.ndarray:
        mask = np.zeros((row["height"], row["width"]), bool)
        mask[:, 0] = True  # the patient's right: x = 0
        return mask

    finished_run.write(archive, tmp_path / "run", left_column)
    assert export.main(flags("dicom-seg", tmp_path, str(tmp_path / "out"))) == 0
    (file,) = (tmp_path / "out/dicom-seg").iterdir()
    segmentation = pydicom.dcmread(file)
    tumor = {
        float(frame.PlanePositionSequence[0].ImagePositionPatient[0]): int(pixels.sum())
        for frame, pixels in zip(
            segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True
        )
    }
    assert tumor == {0.0: 24, 2.0: 0, 4.0: 0, 6.0: 0}
