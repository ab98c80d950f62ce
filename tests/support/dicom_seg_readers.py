"""DICOM segmentations as programs see them that did not write them: dciodvfy and dcmqi."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

DCMQI = Path(sys.executable).with_name("segimage2itkimage")


def errors_of(path: Path) -> list[str]:
    """What dciodvfy, the validator of DICOM files, finds wrong."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian: dicom3tools) is not installed")
    done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    assert "Segmentation" in lines, lines  # it knows what kind of file that is
    return [line for line in lines if line.startswith("Error")]


def read_by_dcmqi(path: Path, folder: Path) -> Any:
    """The mask as a NIfTI image."""
    if not DCMQI.exists():
        pytest.skip("dcmqi is not installed")
    folder.mkdir()
    command = [DCMQI, "--inputDICOM", path, "--outputDirectory", folder, "--outputType", "nii"]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = folder.glob("*.nii*")
    return nibabel.load(file)


def assert_same_voxels(found: Any, expected: Any) -> None:
    """Two masks have the same voxels in the patient, however their axes run."""
    voxels = np.asarray(found.dataobj) > 0
    wanted = np.argwhere(np.asarray(expected.dataobj) > 0)
    to_found = np.linalg.inv(found.affine) @ expected.affine
    index = nibabel.affines.apply_affine(to_found, wanted)
    assert np.abs(index - index.round()).max() < 0.01  # centres of voxels on centres
    assert np.count_nonzero(voxels) == len(wanted)
    assert voxels[tuple(index.round().astype(int).T)].all()
