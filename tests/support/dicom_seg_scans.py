"""DICOM scans of one patient that tests ingest and export as DICOM segmentations."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from jobs import export
from segmodel.sources.dicom import DicomOptions, scan_folder
from segmodel.sources.series_rules import load_rules
from tests.support import dicoms, finished_run
from tests.support.dicoms import uid

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
