"""Patients from NIfTI files: what becomes of their images and masks."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from segmodel.core.source_files import SourceFiles
from segmodel.sources import nifti_case_files, nifti_file
from segmodel.sources.base import PatientRecord
from segmodel.sources.nifti import NiftiOptions, NiftiSource, open_nifti
from segmodel.sources.nifti_file import NiftiFile
from segmodel.storage import store
from tests.support.niftis import LPS, head, save, spaced

RAS = np.eye(4)


def open_brats(folder: Path, **options: object) -> NiftiSource:
    return open_nifti(str(folder), NiftiOptions(percentiles=(0, 100), **options))


def read(folder: Path, **options: object) -> PatientRecord:
    return open_brats(folder, **options).read("P")


def pixels(record: PatientRecord, number: int) -> np.ndarray:
    row = record.slices.to_pylist()[number]
    return np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3)


def masks(record: PatientRecord) -> np.ndarray:
    rows = record.slices.to_pylist()
    shape = (len(rows), rows[0]["height"], rows[0]["width"])
    return np.array([list(row["mask"]) for row in rows]).reshape(shape)


def reasons(record: PatientRecord) -> dict[str, str]:
    return {row["stage"]: row["reason"] for row in record.rejects.to_pylist()}


def channels(record: PatientRecord) -> list[dict]:
    return record.series.to_pylist()[0]["channels"]


def test_the_front_of_the_head_is_up_whatever_the_axes_of_the_file(tmp_path: Path) -> None:
    voxels = np.ones((6, 5, 4), np.int16)
    voxels[0, 0, 3] = 200  # LPS: rightmost, most anterior, uppermost
    save(tmp_path / "lps/P_flair.nii", voxels, LPS)
    save(tmp_path / "ras/P_flair.nii", voxels[::-1, ::-1], RAS)
    save(tmp_path / "pir/P_flair.nii", voxels.transpose(1, 2, 0)[:, ::-1], PIL)
    for name in ("lps", "ras", "pir"):
        top = pixels(read(tmp_path / name), 3)
        assert top.shape == (5, 6, 3)
        assert np.argwhere(top[..., 1] == 255).tolist() == [[0, 0]], name


PIL = np.array([[0, 0, -1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
"""Axes to posterior, inferior and left."""


def test_channels_are_pre_contrast_flair_and_post_contrast(tmp_path: Path) -> None:
    for number, word in enumerate(("t1", "flair", "t1ce")):
        save(tmp_path / f"P_{word}.nii.gz", np.roll(head(), number))
    record = read(tmp_path)
    assert [channel["name"] for channel in channels(record)] == [
        "pre-contrast",
        "FLAIR",
        "post-contrast",
    ]
    sources = [Path(channel["source_uri"]).name for channel in channels(record)]
    assert sources == ["P_t1.nii.gz", "P_flair.nii.gz", "P_t1ce.nii.gz"]


def test_flair_stands_in_for_a_missing_sequence_and_the_table_says_so(tmp_path: Path) -> None:
    save(tmp_path / "P_flair.nii.gz", head())
    record = read(tmp_path)
    shown = pixels(record, 0)
    assert np.array_equal(shown[..., 0], shown[..., 1])
    assert "FLAIR stands in for it: no such image" in channels(record)[0]["because"]


def test_a_study_without_flair_is_a_reject(tmp_path: Path) -> None:
    save(tmp_path / "P_t1.nii.gz", head())
    record = read(tmp_path)
    assert record.slices.num_rows == 0
    assert reasons(record)["series"] == "no FLAIR in this study, only pre-contrast"


def test_other_channels_need_only_the_first_of_them(tmp_path: Path) -> None:
    save(tmp_path / "P_t2.nii.gz", head())
    record = read(tmp_path, channels=("T2", "pre-contrast"))
    assert [channel["name"] for channel in channels(record)] == ["T2", "pre-contrast"]


def test_a_sequence_on_another_grid_is_interpolated_onto_flair_s(tmp_path: Path) -> None:
    save(tmp_path / "P_flair.nii.gz", head((4, 4, 4)))
    coarse = np.zeros((4, 4, 2), np.int16)
    coarse[..., 1] = 100  # slices at 0 and at 3 mm
    save(tmp_path / "P_t1.nii.gz", coarse, spaced(1, 1, 3))
    record = read(tmp_path)
    column = [int(pixels(record, number)[0, 0, 0]) for number in range(4)]
    # The window is from the smallest to the largest value that is not 0: 100/3 to 100.
    assert column == pytest.approx([0, 0, 127.5, 255], abs=0.5)
    assert "interpolated to this grid, 100% covered" in channels(record)[0]["because"]


def test_a_sequence_that_lies_elsewhere_counts_as_missing(tmp_path: Path) -> None:
    save(tmp_path / "P_flair.nii.gz", head())
    far = LPS.copy()
    far[2, 3] = 100
    save(tmp_path / "P_t1.nii.gz", head(), far)
    assert "it covers 0% of the slices only" in channels(read(tmp_path))[0]["because"]


def test_coordinates_of_another_kind_cannot_be_laid_over_each_other(tmp_path: Path) -> None:
    save(tmp_path / "P_flair.nii.gz", head())
    save(tmp_path / "P_t1.nii.gz", head(), spaced(1, 1, 2), sform=4, qform=0)
    because = channels(read(tmp_path))[0]["because"]
    assert "its coordinates are others (MNI 152 and scanner)" in because


def test_a_mask_is_turned_like_its_image_and_its_labels_are_counted(tmp_path: Path) -> None:
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[5, 4, 3] = 4  # RAS: rightmost, most anterior, uppermost
    labels[0, 0, 0] = 1
    save(tmp_path / "P_flair.nii.gz", head(), RAS)
    save(tmp_path / "P_seg.nii.gz", labels, RAS)
    record = read(tmp_path)
    assert np.argwhere(masks(record)).tolist() == [[0, 4, 5], [3, 0, 0]]
    assert record.series.to_pylist()[0]["label_voxels"] == [(1, 1), (4, 1)]
    assert np.argwhere(masks(read(tmp_path, tumor_labels=(4,)))).tolist() == [[3, 0, 0]]


@pytest.mark.parametrize(
    ("voxels", "affine", "reason"),
    [
        (np.full((6, 5, 4), 0.5, np.float32), LPS, "whole numbers, this one 0.5"),
        (
            np.zeros((6, 5, 3), np.uint8),
            LPS,
            "has 3 x 5 x 6 slices, rows and columns, its image 4 x 5 x 6",
        ),
        (np.zeros((6, 5, 4), np.uint8), RAS, "has another position than its image"),
    ],
)
def test_a_mask_that_does_not_fit_is_a_reject_and_its_image_stays(
    tmp_path: Path, voxels: np.ndarray, affine: np.ndarray, reason: str
) -> None:
    save(tmp_path / "P_flair.nii.gz", head())
    save(tmp_path / "P_seg.nii.gz", voxels, affine)
    record = read(tmp_path)
    assert record.slices.num_rows == 4
    assert record.slices["mask"].null_count == 4
    assert reason in reasons(record)["mask"]


def test_thick_sagittal_slices_are_taken_only_with_any_plane(tmp_path: Path) -> None:
    save(tmp_path / "P_flair.nii.gz", head(), spaced(5, 1, 1))
    assert "sagittal and 5.0 mm thick; give --any-plane" in reasons(read(tmp_path))["series"]
    record = read(tmp_path, any_plane=True)
    row = record.slices.to_pylist()[0]
    assert (row["row_spacing_mm"], row["column_spacing_mm"], row["slice_spacing_mm"]) == (1, 5, 1)


def test_the_volume_is_that_of_the_source_mask_on_an_oblique_grid(tmp_path: Path) -> None:
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    oblique = LPS @ np.array([[1, 0, 0, 5], [0, c, -s, 7], [0, s, c, -9], [0, 0, 0, 1]])
    affine = oblique @ np.diag([0.9, 0.7, 5.5, 1])
    labels = (np.random.default_rng(3).random((6, 5, 4)) < 0.4).astype(np.uint8)
    save(tmp_path / "P_flair.nii.gz", head(), affine, qform=0)
    save(tmp_path / "P_seg.nii.gz", labels, affine, qform=0)
    record = read(tmp_path)
    row = record.slices.to_pylist()[0]
    voxel = row["row_spacing_mm"] * row["column_spacing_mm"] * row["slice_spacing_mm"]
    volume = masks(record).sum() * voxel
    assert volume == pytest.approx(labels.sum() * 0.9 * 0.7 * 5.5, rel=1e-6)


def test_a_sheared_stack_has_no_distance_between_slices(tmp_path: Path) -> None:
    sheared = LPS.copy()
    sheared[1, 2] = 0.2  # 11 degrees
    save(tmp_path / "P_flair.nii.gz", head(), sheared, qform=0)
    record = read(tmp_path)
    assert record.slices["slice_spacing_mm"].null_count == 4
    assert "sheared by 11" in record.series.to_pylist()[0]["no_volume_reason"]


def known(record: PatientRecord) -> dict[str, SourceFiles]:
    (row,) = record.series.to_pylist()
    names = ("source_files", "source_listing", "source_content")
    return {row["series_id"]: SourceFiles(*(row[name] for name in names))}


def test_a_series_that_is_in_the_archive_is_passed_over_unless_it_changed(tmp_path: Path) -> None:
    save(tmp_path / "P_flair.nii.gz", head())
    source = open_brats(tmp_path)
    before = known(source.read("P"))
    again = source.read("P", before)
    assert (again.slices.num_rows, again.rejects.num_rows) == (0, 0)
    save(tmp_path / "P_flair.nii.gz", head() + 1)
    assert "made from other files" in reasons(source.read("P", before))["known"]


def test_a_copy_of_the_same_files_is_no_change(tmp_path: Path) -> None:
    path = save(tmp_path / "P_flair.nii.gz", head())
    before = known(read(tmp_path))
    os.utime(path, (1, 1))
    assert read_again(tmp_path, before).rejects.num_rows == 0


def test_a_file_that_is_not_used_may_change(tmp_path: Path) -> None:
    save(tmp_path / "P_flair.nii.gz", head())
    save(tmp_path / "P_t2.nii.gz", head())
    before = known(read(tmp_path))
    save(tmp_path / "P_t2.nii.gz", head() + 1)
    assert read_again(tmp_path, before).rejects.num_rows == 0


def read_again(folder: Path, before: dict[str, SourceFiles]) -> PatientRecord:
    return open_brats(folder).read("P", before)


def test_a_file_that_changes_while_it_is_read_costs_its_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "P_flair.nii.gz", head())

    def load_and_change(*given: object, **more: object) -> NiftiFile:
        loaded = nifti_file.load_nifti(*given, **more)
        os.utime(path, (1, 1))
        return loaded

    monkeypatch.setattr(nifti_case_files, "load_nifti", load_and_change)
    record = read(tmp_path)
    assert record.slices.num_rows == 0
    assert "changed while it was being read" in reasons(record)["series"]


def test_a_sequence_that_the_disk_does_not_give_counts_as_missing(tmp_path: Path) -> None:
    save(tmp_path / "P_flair.nii.gz", head())
    (tmp_path / "P_t1.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    record = read(tmp_path)
    assert record.slices.num_rows == 4
    assert reasons(record) == {"sequence": "cannot be read: No such file or directory"}


def test_a_folder_that_cannot_be_listed_costs_no_other_patient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "P" / "P_flair.nii.gz", head())
    (tmp_path / "closed").mkdir()
    entries = store._entries

    def refuse(uri: str) -> list[dict]:
        if uri.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return entries(uri)

    monkeypatch.setattr(store, "_entries", refuse)
    source = open_brats(tmp_path)
    assert source.patients() == ["P"]
    assert source.problems() == [
        {
            "source_uri": f"{tmp_path}/closed",
            "stage": "listing",
            "reason": "cannot be read: Permission denied",
        }
    ]


def test_a_mask_whose_axes_run_otherwise_is_turned_by_itself(tmp_path: Path) -> None:
    labels = (np.random.default_rng(3).random((6, 5, 4)) < 0.4).astype(np.uint8)
    ras = LPS @ np.array([[-1, 0, 0, 5], [0, -1, 0, 4], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    save(tmp_path / "a" / "P_flair.nii.gz", head(), LPS)
    save(tmp_path / "a" / "P_seg.nii.gz", labels, LPS)
    save(tmp_path / "b" / "P_flair.nii.gz", head(), LPS)
    save(tmp_path / "b" / "P_seg.nii.gz", labels[::-1, ::-1], ras)
    assert np.array_equal(masks(read(tmp_path / "a")), masks(read(tmp_path / "b")))


def test_two_sequences_of_one_4d_file_are_read_from_the_store_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = np.stack([head(), head()[::-1]], axis=-1)
    save(tmp_path / "imagesTr" / "P.nii.gz", both)
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T1", "1": "FLAIR"}}')
    loaded = []

    def count(uri: str, **more: object) -> NiftiFile:
        loaded.append(uri)
        return nifti_file.load_nifti(uri, **more)

    monkeypatch.setattr(nifti_case_files, "load_nifti", count)
    first = pixels(read(tmp_path), 0)
    assert len(loaded) == 1
    assert np.array_equal(first[..., 0], first[:, ::-1, 1])


def test_a_new_session_of_a_known_patient_comes_in(tmp_path: Path) -> None:
    save(tmp_path / "BraTS-GLI-00005-000-t2f.nii.gz", head())
    save(tmp_path / "BraTS-GLI-00005-001-t2f.nii.gz", head())
    source = open_brats(tmp_path)
    record = source.read("BraTS-GLI-00005", {"000": None})
    assert set(record.slices["series_id"].to_pylist()) == {"001"}


def test_only_keeps_what_it_takes_to_read_some_patients(tmp_path: Path) -> None:
    for patient in ("P", "Q", "R"):
        save(tmp_path / f"{patient}_flair.nii.gz", head())
    source = open_brats(tmp_path).restricted_to("Q")
    assert source.patients() == ["Q"]
    assert source.read("Q").slices.num_rows == 4


def test_files_on_s3_give_the_same_slices(tmp_path: Path, s3_bucket: str) -> None:
    save(tmp_path / "P_flair.nii.gz", head())
    save(tmp_path / "P_seg.nii.gz", (head() > 60).astype(np.uint8))
    prefix = f"{s3_bucket}/nifti-source/night"
    store.upload_folder(prefix, str(tmp_path))
    source = open_nifti(prefix, NiftiOptions(percentiles=(0, 100)))
    record = source.read("P")
    assert record.slices.select(["pixels", "mask"]).equals(
        read(tmp_path).slices.select(["pixels", "mask"])
    )
    assert source.read("P", known(record)).rejects.num_rows == 0


@pytest.mark.parametrize(
    ("options", "ends"),
    [({}, "--sequences takes files with other names"), ({"sequences": ("FLAIR=*_flair*",)}, "'")],
)
def test_files_of_no_study_are_counted_with_the_flag_that_takes_them(
    options: dict, ends: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "P_flair.nii.gz", head())
    save(tmp_path / "other.nii.gz", head())
    source = open_nifti(str(tmp_path), NiftiOptions(**options))
    source.patients()
    told = capsys.readouterr().out.splitlines()[0]
    assert "1 NIfTI files belong to no study" in told
    assert "the first is 'other.nii.gz'" in told
    assert told.endswith(ends)


def test_labels_that_a_slope_rounds_are_whole_numbers(tmp_path: Path) -> None:
    save(tmp_path / "P_flair.nii", head())
    stored = np.zeros((6, 5, 4), np.uint8)
    stored[0, 0, :] = (0, 255, 255, 51)
    save(tmp_path / "P_seg.nii", stored, slope=1 / 51)  # in 32 bits: 5.0000002 and 1.00000004
    record = read(tmp_path, tumor_labels=(5,))
    assert record.rejects.num_rows == 0
    assert record.series["label_voxels"].to_pylist() == [[(1, 1), (5, 2)]]
    assert [sum(mask) for mask in record.slices["mask"].to_pylist()] == [0, 1, 1, 0]
