"""Made-up patients for the benchmark of ingest, as NIfTI and as DICOM."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import FileDataset

from tests.support import dicoms, niftis

SEQUENCES = {"t1": "AX T1", "flair": "AX T2 FLAIR", "t1ce": "AX T1 POST GAD"}
"""Word of a file's name, and description of a series."""


def head(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """An ellipsoid of tissue with noise and a brighter lesion on a black background; int16."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij", sparse=True)
    inside = sum((axis / 0.8) ** 2 for axis in axes) < 1
    lesion = sum(((axis - 0.2) / 0.2) ** 2 for axis in axes) < 1
    values = rng.normal(600, 60, shape) + 400 * lesion
    return np.where(inside, values, 0).astype(np.int16)


def nifti_patients(folder: Path, patients: int, shape: tuple[int, int, int]) -> Path:
    """BraTS layout, compressed; all patients have the same voxels in files of their own."""
    masters = {}
    for number, word in enumerate(SEQUENCES):
        masters[word] = niftis.save(folder / "masters" / f"{word}.nii.gz", head(shape, number))
    labels = (head(shape, 1) > 850).astype(np.uint8)
    masters["seg"] = niftis.save(folder / "masters" / "seg.nii.gz", labels)
    for patient in range(patients):
        own = folder / "scans" / f"P{patient:04d}"
        own.mkdir(parents=True)
        for word, path in masters.items():
            shutil.copy(path, own / f"{own.name}_{word}.nii.gz")
    return folder / "scans"


def dicom_patients(
    folder: Path,
    patients: int,
    shape: tuple[int, int, int],
    words: tuple[str, ...] = tuple(SEQUENCES),
) -> Path:
    """A study of classic uncompressed MR images a patient, a folder a series."""
    for number, word in enumerate(words):
        images = head(shape, number)
        made = [
            dicoms.dataset(
                image.astype(np.uint16),
                4.0 * index,
                SeriesDescription=SEQUENCES[word],
                SeriesNumber=number,
            )
            for index, image in enumerate(images)
        ]
        for patient in range(patients):
            _save_series(folder / "scans" / f"P{patient:04d}" / word, f"P{patient:04d}", word, made)
    return folder / "scans"


def _save_series(folder: Path, patient: str, word: str, images: list[FileDataset]) -> None:
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        image.PatientID = patient
        image.StudyInstanceUID = dicoms.uid(patient)
        image.SeriesInstanceUID = dicoms.uid(f"{patient} {word}")
        image.FrameOfReferenceUID = dicoms.uid(f"{patient} frame")
        image.SOPInstanceUID = dicoms.uid(f"{patient} {word} {index}")
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(folder / f"{index:04d}.dcm", enforce_file_format=True)


def load_nifti_by_hand(path: Path) -> np.ndarray:
    """As the manual of nibabel has it, with isal's gzip, which is faster than Python's."""
    from isal import igzip

    with igzip.open(path) as file:
        return np.asanyarray(nibabel.Nifti1Image.from_bytes(file.read()).dataobj)
