import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmodel.core import schema
from segmodel.core.errors import SourceError
from segmodel.core.geometry import Spacing
from segmodel.sources.lgg import LggSource
from segmodel.storage import store
from tests.support.tiffs import PATIENT, gray, read, reasons, rgb, save


def test_an_image_and_its_mask_become_one_slice(tmp_path: Path) -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    mask = np.array([[0, 255, 0], [255, 0, 0]], dtype=np.uint8)
    save(tmp_path / PATIENT, f"{PATIENT}_7.tif", pixels)
    save(tmp_path / PATIENT, f"{PATIENT}_7_mask.tif", mask)
    record = read(tmp_path)
    assert record.rejects.num_rows == 0
    assert record.slices.to_pylist() == [
        {
            "slice_id": f"{PATIENT}_7",
            "patient_id": PATIENT,
            "series_id": PATIENT,
            "slice_index": 7,
            "height": 2,
            "width": 3,
            "pixels": bytes(range(18)),
            "mask": bytes([0, 1, 0, 1, 0, 0]),
            "row_spacing_mm": None,
            "column_spacing_mm": None,
            "slice_spacing_mm": None,
            "source_uri": f"{tmp_path}/{PATIENT}/{PATIENT}_7.tif",
            "sop_instance_uid": None,
        }
    ]


def test_tables_keep_to_the_schemas_even_when_there_is_nothing_in_them(tmp_path: Path) -> None:
    (tmp_path / PATIENT).mkdir()
    record = read(tmp_path)
    assert record.slices.schema.equals(schema.ARCHIVE)
    assert record.rejects.schema.equals(schema.REJECTS)
    assert record.slices.num_rows == 0


def test_spacing_that_is_given_goes_to_every_slice(tmp_path: Path) -> None:
    save(tmp_path / PATIENT, "a_1.tif", rgb())
    save(tmp_path / PATIENT, "a_2.tif", rgb())
    slices = read(tmp_path, Spacing(slice_mm=5.0, row_mm=0.5, column_mm=0.25)).slices
    assert slices["slice_spacing_mm"].to_pylist() == [5.0, 5.0]
    assert slices["row_spacing_mm"].to_pylist() == [0.5, 0.5]
    assert slices["column_spacing_mm"].to_pylist() == [0.25, 0.25]


def test_slice_2_comes_before_slice_10(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        save(tmp_path / PATIENT, f"a_{number}.tif", rgb(value=number))
    slices = read(tmp_path).slices
    assert slices["slice_index"].to_pylist() == [1, 2, 10]
    assert [pixels[0] for pixels in slices["pixels"].to_pylist()] == [1, 2, 10]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 2), (2, 5), (17, 31)])
def test_a_slice_may_have_any_size(tmp_path: Path, height: int, width: int) -> None:
    pixels = (np.arange(height * width * 3) % 251).astype(np.uint8).reshape(height, width, 3)
    save(tmp_path / PATIENT, "a_1.tif", pixels)
    save(tmp_path / PATIENT, "a_1_mask.tif", gray(height, width))
    row = read(tmp_path).slices.to_pylist()[0]
    assert (row["height"], row["width"]) == (height, width)
    assert row["pixels"] == pixels.tobytes()
    assert row["mask"] == b"\x01" * (height * width)


@pytest.mark.parametrize("values", [[0, 1, 1], [0, 255, 255]])
def test_masks_of_0_and_1_and_of_0_and_255_mean_the_same(tmp_path: Path, values: list[int]) -> None:
    save(tmp_path / PATIENT, "a_1.tif", rgb(1, 3))
    save(tmp_path / PATIENT, "a_1_mask.tif", np.array([values], dtype=np.uint8))
    assert read(tmp_path).slices["mask"].to_pylist() == [b"\x00\x01\x01"]


def test_a_one_bit_mask_is_read(tmp_path: Path) -> None:
    save(tmp_path / PATIENT, "a_1.tif", rgb(1, 3))
    save(tmp_path / PATIENT, "a_1_mask.tif", np.array([[False, True, True]]))
    record = read(tmp_path)
    assert record.slices["mask"].to_pylist() == [b"\x00\x01\x01"]
    assert reasons(record) == {}


def test_an_empty_mask_is_an_annotation_and_a_missing_one_is_null(tmp_path: Path) -> None:
    save(tmp_path / PATIENT, "a_1.tif", rgb(1, 2))
    save(tmp_path / PATIENT, "a_1_mask.tif", gray(1, 2, 0))
    save(tmp_path / PATIENT, "a_2.tif", rgb(1, 2))
    record = read(tmp_path)
    assert record.slices["mask"].to_pylist() == [b"\x00\x00", None]
    assert reasons(record) == {}


def test_a_mask_without_an_image_is_left_out_with_its_reason(tmp_path: Path) -> None:
    save(tmp_path / PATIENT, "a_1.tif", rgb())
    save(tmp_path / PATIENT, "a_2_mask.tif", gray())
    record = read(tmp_path)
    assert record.slices["slice_id"].to_pylist() == [f"{PATIENT}/a_1"]
    assert reasons(record) == {"a_2_mask.tif": "mask without an image"}
    assert record.rejects["patient_id"].to_pylist() == [PATIENT]


@pytest.mark.parametrize(
    "name", ["notes.txt", "a.tif", "a_1.png", "_1.tif", "a_1_mask_old.tif", "a_x.tif"]
)
def test_a_file_of_another_name_is_left_out_with_its_reason(tmp_path: Path, name: str) -> None:
    save(tmp_path / PATIENT, name, rgb())
    record = read(tmp_path)
    assert record.slices.num_rows == 0
    assert reasons(record) == {name: "not named NAME_<slice>.tif or NAME_<slice>_mask.tif"}


def test_the_ending_may_be_in_capitals_or_have_two_f(tmp_path: Path) -> None:
    save(tmp_path / PATIENT, "a_1.TIF", rgb(1, 1))
    save(tmp_path / PATIENT, "a_1_MASK.tiff", gray(1, 1))
    record = read(tmp_path)
    assert record.slices["mask"].to_pylist() == [b"\x01"]
    assert reasons(record) == {}


def test_the_same_slice_with_two_endings_is_read_once(tmp_path: Path) -> None:
    save(tmp_path / PATIENT, "a_1.tif", rgb(value=1))
    save(tmp_path / PATIENT, "a_1.tiff", rgb(value=2))
    record = read(tmp_path)
    assert record.slices["slice_id"].to_pylist() == [f"{PATIENT}/a_1"]
    assert reasons(record) == {
        "a_1.tiff": "a file of the same name with the other ending came before"
    }


def test_patients_are_the_folders_sorted_and_one_without_slices_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "B", "b_1.tif", rgb())
    save(tmp_path / "A" / "scan", "a_1.tif", rgb())
    (tmp_path / "C").mkdir()
    save(tmp_path, "d_1.tif", rgb())
    (tmp_path / "data.csv").write_text("Patient\n")
    source = LggSource(str(tmp_path), None)
    assert source.patients() == ["A", "B", "C"]
    assert (
        "1 TIFF files outside the patients' folders are skipped, the first is 'd_1.tif'"
        in capsys.readouterr().out
    )
    assert reasons(source.read("A"))["scan"].startswith("a folder: ")
    assert reasons(source.read("B")) == {}
    assert reasons(source.read("C")) == {"C": "no file in it"}
    assert source.read("C").rejects["patient_id"].to_pylist() == ["C"]


def test_links_are_followed_and_one_that_leads_nowhere_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere", "a_1.tif", rgb())
    source = tmp_path / "source"
    source.mkdir()
    (source / PATIENT).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "a_2.tif").symlink_to(tmp_path / "elsewhere" / "a_1.tif")
    (tmp_path / "elsewhere" / "a_3.tif").symlink_to(tmp_path / "nowhere")
    assert LggSource(str(source), None).patients() == [PATIENT]
    record = read(source)
    assert record.slices["slice_index"].to_pylist() == [1, 2]
    assert reasons(record) == {"a_3.tif": "cannot be read: No such file or directory"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_folder_or_file_that_the_disk_refuses_is_left_out_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    for patient in "AB":
        for number in (1, 2):
            save(tmp_path / patient, f"{patient}_{number}.tif", rgb())
    scandir, read_bytes = os.scandir, store.read_bytes

    def refused(path: str) -> Any:
        if str(path) in (f"{tmp_path}/A", f"{tmp_path}/B/B_1.tif"):
            raise OSError(code, os.strerror(code), str(path))
        return scandir(path) if Path(path).is_dir() else read_bytes(path)

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(store, "read_bytes", refused)
    source = LggSource(str(tmp_path), None)
    assert source.patients() == ["A", "B"]
    why = f"cannot be read: {os.strerror(code)}"
    assert (source.read("A").slices.num_rows, reasons(source.read("A"))) == (0, {"A": why})
    assert source.read("B").slices["slice_id"].to_pylist() == ["B_2"]
    assert reasons(source.read("B")) == {"B_1.tif": why}


def test_what_may_pass_ends_the_ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / PATIENT, "a_1.tif", rgb())

    def stale(uri: str) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), uri)

    monkeypatch.setattr(store, "read_bytes", stale)
    with pytest.raises(OSError, match="Stale"):
        read(tmp_path)


def test_a_slice_number_that_an_archive_cannot_hold_is_left_out(tmp_path: Path) -> None:
    for number in (2**31 - 1, 2**31):
        save(tmp_path / PATIENT, f"a_{number}.tif", rgb())
    record = read(tmp_path)
    assert record.slices["slice_index"].to_pylist() == [2**31 - 1]
    assert reasons(record) == {f"a_{2**31}.tif": "its slice number is above 2147483647"}


def test_names_that_are_not_utf_8_are_left_out_and_can_be_read_in_the_reason(
    tmp_path: Path,
) -> None:
    patient, latin = (
        b"M\xfcller".decode(errors="surrogateescape"),
        b"M\xfcller_1.tif".decode(errors="surrogateescape"),
    )
    save(tmp_path / patient, "a_1.tif", rgb())
    save(tmp_path / PATIENT, latin, rgb())
    source = LggSource(str(tmp_path), None)
    assert source.patients() == sorted([patient, PATIENT])
    of_folder, of_file = source.read(patient), source.read(PATIENT)
    assert (of_folder.slices.num_rows, of_file.slices.num_rows) == (0, 0)
    assert reasons(of_folder) == {"M\\udcfcller": "its name is not UTF-8"}
    assert reasons(of_file) == {"M\\udcfcller_1.tif": "its name is not UTF-8"}


def test_two_colons_in_a_name_are_part_of_it(tmp_path: Path) -> None:
    save(tmp_path / "1.2::3", "a::b_1.tif", rgb())
    source = LggSource(str(tmp_path), None)
    assert source.patients() == ["1.2::3"]
    assert source.read("1.2::3").slices["slice_id"].to_pylist() == ["1.2::3/a::b_1"]


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere: no such folder"):
        LggSource(f"{tmp_path}/nowhere", None).patients()


def test_slices_named_as_in_the_lgg_data_set_keep_their_ids(tmp_path: Path) -> None:
    patient = "TCGA_CS_4941_19960909"
    save(tmp_path / patient, f"{patient}_12.tif", rgb())
    slices = LggSource(str(tmp_path), None).read(patient).slices
    assert slices["slice_id"].to_pylist() == ["TCGA_CS_4941_19960909_12"]


def test_slices_of_different_patients_have_different_ids_whatever_their_names(
    tmp_path: Path,
) -> None:
    for patient, name in [
        ("A", "slice_1.tif"),
        ("B", "slice_1.tif"),
        ("A", "A_B_1.tif"),
        ("A_B", "A_B_1.tif"),
        ("B", "A_1.tif"),
        ("A", "A_1.tif"),
    ]:
        save(tmp_path / patient, name, rgb())
    source = LggSource(str(tmp_path), None)
    ids = {
        patient: set(source.read(patient).slices["slice_id"].to_pylist())
        for patient in source.patients()
    }
    assert ids == {
        "A": {"A_1", "A/slice_1", "A/A_B_1"},
        "A_B": {"A_B_1"},
        "B": {"B/slice_1", "B/A_1"},
    }


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("data", "data/kaggle_3m"),
        ("", "data/kaggle_3m"),
        ("data/kaggle_3m/A", "data/kaggle_3m"),
    ],
)
def test_a_source_at_another_level_is_refused_with_the_folder_that_was_meant(
    tmp_path: Path, given: str, meant: str
) -> None:
    save(tmp_path / "data" / "kaggle_3m" / "A", "A_1.tif", rgb())
    (tmp_path / "data" / "kaggle_3m" / "data.csv").write_text("Patient\n")
    with pytest.raises(SourceError, match=rf"did you mean {tmp_path}/{meant}\?"):
        LggSource(str(tmp_path / given).rstrip("/"), None).patients()


def test_a_source_without_slices_anywhere_is_refused_without_a_guess(tmp_path: Path) -> None:
    (tmp_path / "A" / "B").mkdir(parents=True)
    (tmp_path / "A" / "notes.txt").write_text("no slice")
    with pytest.raises(SourceError, match="no patient's folder with NAME_<slice>") as no:
        LggSource(str(tmp_path), None).patients()
    assert "did you mean" not in str(no.value)


def test_a_source_without_patients_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, "a_1.tif", rgb())
    with pytest.raises(SourceError, match="one folder a patient"):
        LggSource(str(tmp_path), None).patients()
