"""From scans of patients to their volumes: ingest of NIfTI and of DICOM, train, segment."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from jobs import ingest, segment
from segmodel.archive.reader import Archive
from segmodel.core.grid import RAS_TO_LPS
from segmodel.core.mask_png import decode_mask
from segmodel.models import checkpoint
from segmodel.models.registry import ModelSettings
from tests.support import dicoms, niftis, scans, standin, tiny_training

pytestmark = pytest.mark.usefixtures("local_ray")

SIZE, DEPTH = 32, 10
SEQUENCES = {"t1": "AX T1", "flair": "AX T2 FLAIR", "t1ce": "AX T1 POST GAD"}


@dataclass(frozen=True)
class Patient:
    """A head whose lesion is known; axes (slice, row, column), affine to LPS mm."""

    name: str
    voxels: np.ndarray
    lesion: np.ndarray
    affine: np.ndarray


def patient(name: str, seed: int, tilt_degrees: float, *spacing_mm: float) -> Patient:
    """Spacing along slices, rows and columns; slices tilted about the left-right axis."""
    rng = np.random.default_rng(seed)
    voxels = rng.integers(100, 300, (DEPTH, SIZE, SIZE)).astype(np.int16)
    lesion = np.zeros(voxels.shape, bool)
    lesion[3:7, 8 : 14 + seed, 10:20] = True
    voxels[lesion] = 1000
    c, s = np.cos(np.radians(tilt_degrees)), np.sin(np.radians(tilt_degrees))
    axes = np.array([[0, 0, 1], [-s, c, 0], [c, s, 0]])  # of slices, rows and columns in LPS
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = (-16.0, -20.0 + seed, 5.0)
    return Patient(name, voxels, lesion, affine)


PATIENTS = (
    patient("A", 1, 0, 1.0, 1.0, 1.0),
    patient("B", 2, 20, 5.5, 0.9, 0.9),
    patient("C", 3, -8, 3.0, 0.6667, 0.7),
)


def save_nifti(folder: Path, one: Patient) -> None:
    """Axes (column, row, slice) in the file, as scanners' converters write them."""
    in_ras = RAS_TO_LPS @ one.affine @ np.eye(4)[[2, 1, 0, 3]].T
    for word in SEQUENCES:
        path = folder / one.name / f"{one.name}_{word}.nii.gz"
        niftis.save(path, one.voxels.transpose(2, 1, 0), in_ras, qform=0)
    labels = (4 * one.lesion).astype(np.uint8).transpose(2, 1, 0)
    niftis.save(folder / one.name / f"{one.name}_seg.nii.gz", labels, in_ras, qform=0)


def save_dicom(folder: Path, one: Patient) -> None:
    spacing = np.linalg.norm(one.affine[:3, :3], axis=0)
    along = one.affine[:3, :3] / spacing
    for number, (word, description) in enumerate(SEQUENCES.items()):
        for index, image in enumerate(one.voxels):
            dicoms.save(
                folder / f"{one.name}{word}{DEPTH - index}",
                image.astype(np.uint16),
                PatientID=f"{one.name}-dicom",
                StudyInstanceUID=dicoms.uid(one.name),
                SeriesInstanceUID=dicoms.uid(f"{one.name} {word}"),
                SOPInstanceUID=dicoms.uid(f"{one.name} {word} {index}"),
                SeriesNumber=number,
                SeriesDescription=description,
                ImageOrientationPatient=[*along[:, 2], *along[:, 1]],
                ImagePositionPatient=list(one.affine[:3, 3] + index * one.affine[:3, 0]),
                PixelSpacing=[spacing[1], spacing[2]],
            )


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A, B and C from NIfTI with masks; A-dicom and so on are the same patients from DICOM."""
    folder = tmp_path_factory.mktemp("chain")
    for one in PATIENTS:
        save_nifti(folder / "nifti", one)
        save_dicom(folder / "dicom", one)
    for kind, append in (("nifti", []), ("dicom", ["--append"])):
        flags = ["--source", f"{folder}/{kind}", "--format", kind, "--tracking", "none", *append]
        assert ingest.main([*flags, "--archive", f"{folder}/archive"]) == 0
    return f"{folder}/archive"


def run_segment(archive: str, model: str, output: Path) -> dict[str, np.ndarray]:
    """The masks of each patient, (slices, rows, columns)."""
    where = ["--archive", archive, "--checkpoint", model, "--output", str(output)]
    assert segment.main([*where, "--tracking", "none", "--cpu"]) == 0
    rows = [row for path in (output / "masks").iterdir() for row in pq.read_table(path).to_pylist()]
    rows.sort(key=lambda row: row["slice_index"])
    names = {row["patient_id"] for row in rows}
    return {
        name: np.array([decode_mask(row["mask"]) for row in rows if row["patient_id"] == name])
        for name in names
    }


def differing_pixels(masks: dict[str, np.ndarray]) -> int:
    """Between NIfTI and DICOM, of all patients together."""
    pairs = [(masks[one.name], masks[f"{one.name}-dicom"]) for one in PATIENTS]
    return sum(int((nifti != dicom).sum()) for nifti, dicom in pairs)


def test_one_model_gives_the_same_masks_from_nifti_and_dicom_and_true_volumes(
    archive: str, tmp_path: Path
) -> None:
    model = standin.save(str(tmp_path / "model"), SIZE)
    masks = run_segment(archive, model, tmp_path / "run")
    assert differing_pixels(masks) == 0
    rows = pyarrow.csv.read_csv(tmp_path / "run" / "volumes.csv").to_pylist()
    volumes = {row["patient_id"]: row["tumor_volume_mm3"] for row in rows}
    for one in PATIENTS:
        assert np.array_equal(masks[one.name], one.lesion), one.name
        true_mm3 = one.lesion.sum() * abs(np.linalg.det(one.affine[:3, :3]))
        for name in (one.name, f"{one.name}-dicom"):
            assert volumes[name] == pytest.approx(true_mm3, rel=1e-3)


def test_a_model_trained_on_nifti_segments_dicom(archive: str, tmp_path: Path) -> None:
    config = tiny_training.recipe(epochs=1)
    learner = tiny_training.learner_of(Archive(archive), config)  # learns from A; B is validation
    _, (result,) = tiny_training.run(learner, config)
    assert 0 < result.train_loss < 10
    card = replace(
        standin.card(SIZE, training_patients=("A",), validation_patients=("B",)),
        model=ModelSettings(arch="classical", channels=3, width=4),
    )
    checkpoint.save(str(tmp_path / "model"), learner.model, card)
    masks = run_segment(archive, str(tmp_path / "model"), tmp_path / "run")
    assert len(masks) == 2 * len(PATIENTS)
    assert differing_pixels(masks) == 0
    rows = pyarrow.csv.read_csv(tmp_path / "run" / "volumes.csv").to_pylist()
    seen = {row["patient_id"]: row["seen_in_training"] for row in rows}
    assert (seen["A"], seen["B"], seen["C"], seen["A-dicom"]) == ("train", "validation", "no", "no")


def test_masks_of_the_source_are_in_the_archive_to_the_voxel(archive: str) -> None:
    rows = [row for file in scans.files(archive) for row in pq.read_table(file).to_pylist()]
    for one in PATIENTS:
        stored = [
            np.frombuffer(row["mask"], np.uint8) for row in rows if row["patient_id"] == one.name
        ]
        assert np.array_equal(np.array(stored).reshape(one.lesion.shape), one.lesion)
    assert all(row["mask"] is None for row in rows if row["patient_id"].endswith("dicom"))
