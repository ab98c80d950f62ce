"""From scans to volumes.csv and changes.csv; the masks of a run are the experts'."""

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from segmodel.analysis import studies, volumes
from segmodel.archive.reader import Archive
from segmodel.sources.dicom import DicomOptions, scan_folder
from segmodel.sources.nifti import NiftiOptions, open_nifti
from segmodel.sources.series_rules import load_rules
from tests.support import dicoms, finished_run, niftis

C, S = np.cos(np.radians(20)), np.sin(np.radians(20))
AXES = {
    "anisotropic": np.diag([-0.9375, -0.8, 5.5]),
    "oblique": np.array([[-0.9, 0, 0], [0, 0.7 * C, -5.3 * S], [0, 0.7 * S, 5.3 * C]]),
    "sagittal": np.array([[0, 0, -1.2], [-0.8, 0, 0], [0, -1.1, 0]]),
}


@pytest.mark.parametrize("name", AXES)
def test_a_volume_is_the_source_mask_s_voxels_times_their_volume(name: str, tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = AXES[name]
    mask = (np.random.default_rng(0).random((7, 6, 5)) < 0.3).astype(np.uint8)
    niftis.save(tmp_path / "scans/P_flair.nii.gz", niftis.head((7, 6, 5)), affine)
    niftis.save(tmp_path / "scans/P_seg.nii.gz", mask, affine)
    options = NiftiOptions(percentiles=(0, 100), any_plane=True)
    finished_run.ingest(tmp_path / "archive", open_nifti(str(tmp_path / "scans"), options))
    finished_run.write(tmp_path / "archive", tmp_path / "run")
    expected_mm3 = int(mask.sum()) * abs(np.linalg.det(AXES[name]))
    (row,) = pyarrow.csv.read_csv(tmp_path / "run/volumes.csv").to_pylist()
    assert row["tumor_volume_mm3"] == pytest.approx(expected_mm3, rel=1e-3)
    assert row["tumor_volume_ml"] == pytest.approx(expected_mm3 / 1000, rel=1e-3)


def study(folder: Path, day: str, z: list[float], *, contrast: bool) -> None:
    """FLAIR and T1 of one patient, with or without a T1 after contrast."""
    of = {"StudyInstanceUID": dicoms.uid(day), "StudyDate": day}
    dicoms.series(folder, f"flair{day}", z, **of)
    dicoms.series(folder, f"t1{day}", z, 200, SeriesDescription="AX T1", **of)
    if contrast:
        dicoms.series(folder, f"t1c{day}", z, 300, SeriesDescription="AX T1 POST", **of)


def test_two_dicom_studies_of_a_patient_are_compared_with_care(tmp_path: Path) -> None:
    study(tmp_path / "scans", "20200131", [0.0, 5.0, 10.0], contrast=True)
    study(tmp_path / "scans", "20200731", [0.0, 2.5, 5.0], contrast=False)
    options = DicomOptions(rules=load_rules(None), percentiles=(0, 100))
    archive = finished_run.ingest(
        tmp_path / "archive", scan_folder(str(tmp_path / "scans"), options)
    )
    run = finished_run.write(archive, tmp_path / "run", lambda row: np.ones((4, 6), bool))
    volumes.summarise(str(run), {}.get, studies=studies.of_archive(Archive(str(archive))))
    assert pq.read_table(run / "volumes.parquet")["study_date"].to_pylist() == [None]
    days = [date(2020, 1, 31), date(2020, 7, 31)]
    assert sorted(pq.read_table(run / "series.parquet")["study_date"].to_pylist()) == days
    (row,) = pq.read_table(run / "changes.parquet").to_pylist()
    assert (row["first_date"], row["second_date"], row["days"]) == (*days, 182)
    # 3 slices of 24 pixels of 0.5 x 0.25 mm, 5 or 2.5 mm apart
    assert (row["first_volume_ml"], row["second_volume_ml"]) == pytest.approx((0.045, 0.0225))
    assert row["difference_percent"] == pytest.approx(-50)
    assert row["caution"] == (
        "2020-07-31: no post-contrast, another sequence stands in for it; "
        "the spacing is 5 x 0.5 x 0.25 mm, then 2.5 x 0.5 x 0.25 mm"
    )
