"""Masks of NIfTI scans, exported: the same voxels on the same grid as the files that came in."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import export
from segmodel.analysis.tumor_shape import Postprocessing
from segmodel.core import schema
from segmodel.core.errors import ArchiveError, ConfigError, FingerprintError
from segmodel.sources.nifti import NiftiOptions, open_nifti
from tests.support import finished_run, niftis, scans

pytestmark = pytest.mark.usefixtures("without_ray")

C, S = np.cos(np.radians(20)), np.sin(np.radians(20))
GRIDS: dict[str, tuple[tuple[int, int, int], list[list[float]]]] = {
    "LPS": ((6, 5, 4), [[-1, 0, 0, 12.5], [0, -1, 0, -7], [0, 0, 1, 3]]),
    "RAS": ((6, 5, 4), [[1, 0, 0, -90], [0, 1, 0, -126], [0, 0, 1, -72]]),
    "LAS thick": ((6, 5, 4), [[-0.9, 0, 0, 80], [0, 0.9, 0, -70], [0, 0, 5.5, 11]]),
    "oblique": ((6, 5, 4), [[-0.9, 0, 0, 80], [0, 0.9 * C, -5.5 * S, 1], [0, 0.9 * S, 5.5 * C, 2]]),
    "sagittal": ((4, 6, 5), [[0, 0, -1.2, 60], [-0.8, 0, 0, 95], [0, -1.1, 0, 140]]),
    "coronal thick": ((5, 6, 4), [[1, 0, 0, 0], [0, 0, -6, 9], [0, 1, 0, 4]]),
}


def affine_of(name: str) -> np.ndarray:
    return np.vstack([np.array(GRIDS[name][1], np.float32), [0, 0, 0, 1]]).astype(np.float64)


def case(folder: Path, patient: str, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A FLAIR image and a mask without any symmetry; returns the mask."""
    mask = (np.random.default_rng(len(patient)).random(shape) < 0.3).astype(np.uint8)
    mask[0, 0, 0], mask[-1, -1, -1] = 1, 0
    niftis.save(folder / f"{patient}_flair.nii.gz", niftis.head(shape), affine)
    niftis.save(folder / f"{patient}_seg.nii.gz", mask, affine)
    return mask


def archived(tmp_path: Path) -> Path:
    options = NiftiOptions(percentiles=(0, 100), any_plane=True)
    return finished_run.ingest(tmp_path / "archive", open_nifti(str(tmp_path / "scans"), options))


def flags(tmp_path: Path, *more: str, output: str = "out") -> list[str]:
    where = {"archive": "archive", "segmentation": "run", "output": output}
    places = [f"--{name}={tmp_path / place}" for name, place in where.items()]
    return ["--format=nifti", *places, "--tracking=none", *more]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def load(path: Path) -> Any:
    return nibabel.load(path)


@pytest.mark.parametrize("name", GRIDS)
def test_a_mask_that_came_in_goes_out_voxel_by_voxel(name: str, tmp_path: Path) -> None:
    mask = case(tmp_path / "scans", "P", affine_of(name), GRIDS[name][0])
    finished_run.write(archived(tmp_path), tmp_path / "run")
    assert export.main(flags(tmp_path)) == 0
    image = load(tmp_path / "out/nifti/P_mask.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), mask)
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(image.get_sform(), affine_of(name))
    assert np.allclose(image.get_qform(), affine_of(name), atol=1e-4)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 2)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert b"research use, not for diagnosis" in image.header["descrip"].item()
    (row,) = rows(tmp_path / "out/exported.csv")
    ml = mask.sum() * abs(np.linalg.det(affine_of(name)[:3, :3])) / 1000
    assert int(row["tumor_voxels"]) == mask.sum()
    assert float(row["tumor_volume_ml"]) == pytest.approx(ml, rel=1e-3)
    assert (row["file"], row["note"]) == ("nifti/P_mask.nii.gz", "")


def test_a_sheared_grid_keeps_its_affine_and_has_no_qform(tmp_path: Path) -> None:
    affine = affine_of("LPS")
    affine[1, 2] = 0.5
    mask = case(tmp_path / "scans", "P", affine, (6, 5, 4))
    finished_run.write(archived(tmp_path), tmp_path / "run")
    assert export.main(flags(tmp_path)) == 0
    image = load(tmp_path / "out/nifti/P_mask.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), mask)
    assert np.array_equal(image.affine, affine)
    assert int(image.header["qform_code"]) == 0
    (row,) = rows(tmp_path / "out/exported.csv")
    assert row["tumor_volume_ml"] == ""
    assert "sheared" in row["note"]


def test_images_lie_on_the_grid_of_their_source(tmp_path: Path) -> None:
    case(tmp_path / "scans", "P", affine_of("sagittal"), (4, 6, 5))
    finished_run.write(archived(tmp_path), tmp_path / "run")
    assert export.main(flags(tmp_path, "--with-images")) == 0
    image = load(tmp_path / "out/nifti/P_image-FLAIR.nii.gz")
    # 1 … 120 become 0 … 255.
    expected = np.rint((niftis.head((4, 6, 5)) - 1.0) * (255 / 119)).astype(np.uint8)
    assert np.array_equal(np.asarray(image.dataobj), expected)
    assert np.array_equal(image.get_sform(), affine_of("sagittal"))
    found = {path.name for path in (tmp_path / "out/nifti").iterdir()}
    assert len(found) == 4
    assert "P_image-post-contrast.nii.gz" in found


def test_postprocessed_masks_are_the_ones_that_go_out(tmp_path: Path) -> None:
    mask = np.zeros((6, 5, 4), np.uint8)
    mask[0, 0, 0] = mask[4, 3:5, 2] = 1
    niftis.save(tmp_path / "scans/P_flair.nii.gz", niftis.head(), affine_of("RAS"))
    niftis.save(tmp_path / "scans/P_seg.nii.gz", mask, affine_of("RAS"))
    how = Postprocessing(keep_largest=True, min_volume_ml=None)
    finished_run.write(archived(tmp_path), tmp_path / "run", how=how)
    assert export.main(flags(tmp_path)) == 0
    found = np.asarray(load(tmp_path / "out/nifti/P_mask.nii.gz").dataobj)
    mask[0, 0, 0] = 0
    assert np.array_equal(found, mask)


def test_slices_without_a_mask_are_named_and_make_no_volume(tmp_path: Path) -> None:
    mask = case(tmp_path / "scans", "P", affine_of("LPS"), (6, 5, 4))
    finished_run.write(archived(tmp_path), tmp_path / "run", lost=["P_2"])
    assert export.main(flags(tmp_path)) == 0
    assert not (tmp_path / "out/nifti/P_mask.nii.gz").exists()
    image = load(tmp_path / "out/nifti/P_mask_incomplete.nii.gz")
    mask[:, :, 1] = 0  # slice 2 of LPS files is the second along their third axis
    assert np.array_equal(np.asarray(image.dataobj), mask)
    assert b"1 slices without a mask" in image.header["descrip"].item()
    (row,) = rows(tmp_path / "out/exported.csv")
    assert row["note"] == "1 slice without a mask, tumor unknown there: 2"
    assert (row["slices_unknown"], row["tumor_volume_ml"]) == ("1", "")


def test_blank_slices_at_the_ends_have_no_tumor(tmp_path: Path) -> None:
    case(tmp_path / "scans", "P", affine_of("LPS"), (6, 5, 4))
    finished_run.write(archived(tmp_path), tmp_path / "run", blank=["P_1", "P_4"])
    assert export.main(flags(tmp_path)) == 0
    (row,) = rows(tmp_path / "out/exported.csv")
    assert (row["slices_unknown"], row["note"]) == ("0", "")
    volumes = rows(tmp_path / "run/volumes.csv")
    assert float(row["tumor_volume_ml"]) == float(volumes[0]["tumor_volume_ml"])


def test_a_blank_slice_between_others_is_unknown(tmp_path: Path) -> None:
    case(tmp_path / "scans", "P", affine_of("LPS"), (6, 5, 4))
    finished_run.write(archived(tmp_path), tmp_path / "run", blank=["P_1", "P_3"])
    assert export.main(flags(tmp_path)) == 0
    (row,) = rows(tmp_path / "out/exported.csv")
    assert row["note"].endswith("unknown there: 3")


def test_a_series_without_any_mask_is_a_reject_and_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case(tmp_path / "scans", "P1", affine_of("LPS"), (6, 5, 4))
    case(tmp_path / "scans", "P2", affine_of("LPS"), (6, 5, 4))
    lost = [f"P1_{number}" for number in range(1, 5)]
    finished_run.write(archived(tmp_path), tmp_path / "run", lost=lost)
    assert export.main(flags(tmp_path)) == 3
    assert "1 series were left out" in capsys.readouterr().out
    assert rows(tmp_path / "out/rejects.csv") == [
        {"patient_id": "P1", "series_id": "P1", "reason": "no slice of it was segmented"}
    ]
    assert [row["patient_id"] for row in rows(tmp_path / "out/exported.csv")] == ["P2"]
    assert export.main(flags(tmp_path, "--max-rejected=0.5", output="other")) == 0


def test_without_a_spacing_nothing_is_exported_unless_one_is_given(tmp_path: Path) -> None:
    scans.write(tmp_path / "archive", scans.scans("A", 3, spacing=None))
    pixel = np.zeros((4, 4), bool)
    pixel[1, 3] = True
    finished_run.write(tmp_path / "archive", tmp_path / "run", lambda _: pixel)
    with pytest.raises(ArchiveError, match=r"1 series have no voxel spacing.*--spacing-mm"):
        export.main(flags(tmp_path))
    assert not (tmp_path / "out").exists()
    assert export.main(flags(tmp_path, "--spacing-mm", "0.5", "0.25", "6")) == 0
    image = load(tmp_path / "out/nifti/A_mask.nii.gz")
    # Columns run to the left, rows to the back, slices to the head: LPS, as BraTS has it.
    assert np.array_equal(image.affine, np.diag([-0.25, -0.5, 6, 1]))
    assert np.argwhere(np.asarray(image.dataobj)).tolist() == [[3, 1, 0], [3, 1, 1], [3, 1, 2]]
    (row,) = rows(tmp_path / "out/exported.csv")
    assert float(row["tumor_volume_ml"]) == pytest.approx(3 * 0.25 * 0.5 * 6 / 1000, rel=1e-3)
    assert "first voxel is at 0, 0, 0" in row["note"]


def test_a_spacing_that_the_archive_knows_is_not_overruled(tmp_path: Path) -> None:
    scans.write(tmp_path / "archive", scans.scans("A", 3, first_index=4))
    finished_run.write(tmp_path / "archive", tmp_path / "run")
    with pytest.raises(ConfigError, match="knows its spacing itself"):
        export.main(flags(tmp_path, "--spacing-mm", "1", "1", "1"))
    assert export.main(flags(tmp_path)) == 0
    image = load(tmp_path / "out/nifti/A_mask.nii.gz")
    assert image.shape == (4, 4, 3)  # from slice 4 on
    assert np.array_equal(image.affine, np.diag([-1, -1, 5, 1]))


def test_an_archive_of_version_1_has_no_positions_and_is_exported_with_its_spacing(
    tmp_path: Path,
) -> None:
    archive = tmp_path / "archive"
    scans.write(archive, scans.scans("A", 3))
    shutil.rmtree(archive / "series")
    (file,) = scans.files(archive)
    table = pq.read_table(file).drop_columns(["sop_instance_uid"])
    for name, kind in schema.EARLIER_TYPES.items():
        column = table.schema.get_field_index(name)
        table = table.set_column(column, name, table[name].cast(kind))
    pq.write_table(table, file)
    manifest = json.loads((archive / "archive.json").read_text())
    (archive / "archive.json").write_text(json.dumps({**manifest, "format_version": 1}))
    finished_run.write(archive, tmp_path / "run")
    assert export.main(flags(tmp_path, "--with-images")) == 0
    image = load(tmp_path / "out/nifti/A_mask.nii.gz")
    assert np.array_equal(image.affine, np.diag([-1, -1, 5, 1]))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three patients of an archive, segmented."""
    for patient in ("P1", "P2", "P3"):
        case(tmp_path / "scans", patient, affine_of("RAS"), (6, 5, 4))
    finished_run.write(archived(tmp_path), tmp_path / "run")
    return tmp_path


def exported(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out/nifti").iterdir())


def test_only_the_patients_that_are_named_go_out(three: Path) -> None:
    assert export.main(flags(three, "--patients", "P3,P1")) == 0
    assert exported(three) == ["P1_mask.nii.gz", "P3_mask.nii.gz"]
    assert len(rows(three / "out/exported.csv")) == 2


def test_patients_are_several_values_and_an_id_may_have_a_comma(tmp_path: Path) -> None:
    scans.write(tmp_path / "archive", *(scans.scans(name, 1) for name in ("A", "A,B", "B", "C")))
    finished_run.write(tmp_path / "archive", tmp_path / "run")

    def named(*values: str) -> list[str]:
        assert export.main(flags(tmp_path, "--overwrite", "--patients", *values)) == 0
        return [row["patient_id"] for row in rows(tmp_path / "out/exported.csv")]

    assert named("A,B") == ["A,B"]
    assert named("B", "A", "A") == ["A", "B"]
    assert named("A, C,") == ["A", "C"]
    with pytest.raises(ConfigError, match="--patients names no id"):
        named(",")
    with pytest.raises(ConfigError, match=r"1 of 3 patients are not in .*'D'"):
        named("A", "B,D")


def test_a_patient_who_is_not_there_is_an_error_before_anything_is_written(three: Path) -> None:
    with pytest.raises(ConfigError, match=r"1 of 2 patients are not in .*'P9'"):
        export.main(flags(three, "--patients", "P1,P9"))
    assert not (three / "out").exists()


def test_a_segmentation_of_another_archive_is_refused(three: Path) -> None:
    path = three / "run/run.json"
    values = json.loads(path.read_text())
    values["fingerprint"]["archive_id"] = "other"
    path.write_text(json.dumps(values))
    with pytest.raises(FingerprintError, match="another archive"):
        export.main(flags(three))


def test_a_segmentation_that_is_not_finished_is_refused(three: Path) -> None:
    path = three / "run/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": None}))
    with pytest.raises(FingerprintError, match="not finished"):
        export.main(flags(three))


def test_an_export_is_replaced_only_when_told(three: Path) -> None:
    assert export.main(flags(three)) == 0
    with pytest.raises(ConfigError, match="--overwrite"):
        export.main(flags(three))
    assert export.main(flags(three, "--patients=P1", "--overwrite")) == 0
    assert exported(three) == ["P1_mask.nii.gz"]


def test_a_table_that_no_export_wrote_is_never_replaced(three: Path) -> None:
    (three / "out").mkdir()
    (three / "out/exported.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"exported\.csv"):
        export.main(flags(three, "--overwrite"))
    assert (three / "out/exported.csv").read_text() == "mine"


def test_an_export_that_breaks_off_goes_on_with_what_is_missing(
    three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from segmodel.export import driver
    from segmodel.runs import series_masks

    monkeypatch.setattr(series_masks, "TASK_SLICES", 1)  # a task for each series
    calls = []

    def break_off(portion: Any, target: Any) -> Any:
        calls.append(portion.stems)
        if portion.stems == ("P3",) and len(calls) == 3:
            raise ConnectionError("gone")
        return whole(portion, target)

    whole = driver.export_portion
    monkeypatch.setattr(driver, "export_portion", break_off)
    with pytest.raises(ConnectionError):
        export.main(flags(three))
    (three / "out/nifti/P1_mask.nii.gz").unlink()
    with pytest.raises(ConfigError, match=r"of another request \(with_images\)"):
        export.main(flags(three, "--with-images"))
    assert export.main(flags(three)) == 0
    assert calls == [("P1",), ("P2",), ("P3",), ("P1",), ("P3",)]
    assert "continuing: 1 of 3 series" in capsys.readouterr().out
    assert [row["patient_id"] for row in rows(three / "out/exported.csv")] == ["P1", "P2", "P3"]
    assert not (three / "out/unfinished").exists()


def test_ids_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    ids = ["../../evil", "a/b", "..", 'it\'s "quoted"', "x" * 300, "p1", "P1", "=1+1"]
    tables = [scans.scans(name, 1) for name in sorted(ids)]
    scans.write(tmp_path / "archive", *tables)
    finished_run.write(tmp_path / "archive", tmp_path / "run")
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    assert export.main(flags(tmp_path)) == 0
    assert len(exported(tmp_path)) == len(ids)
    assert {path for path in tmp_path.rglob("*") if "out" not in path.parts} == before
    found = rows(tmp_path / "out/exported.csv")
    assert {row["patient_id"].removeprefix("'") for row in found} == set(ids)
    assert all((tmp_path / "out" / row["file"]).is_file() for row in found)
