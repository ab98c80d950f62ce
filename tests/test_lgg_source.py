import errno
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from segmodel import schema, storage
from segmodel.errors import SourceError
from segmodel.geometry import Spacing
from segmodel.sources import PatientRecord
from segmodel.sources.lgg import LggSource

PATIENT = "TCGA_CS_0001"


def save(folder: Path, name: str, values: npt.NDArray[np.generic]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / name, format="TIFF")


def rgb(height: int = 2, width: int = 3, value: int = 9) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), value, dtype=np.uint8)


def gray(height: int = 2, width: int = 3, value: int = 255) -> npt.NDArray[np.uint8]:
    return np.full((height, width), value, dtype=np.uint8)


def rgb_tiff(height: int, width: int, bits: int, data: bytes) -> bytes:
    """An uncompressed RGB TIFF, little-endian, whose header says what it is told to say, true or not."""
    short, long, entries = 3, 4, 9
    bits_at = 8 + 2 + 12 * entries + 4
    data_at = bits_at + 6
    fields = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, 3, bits_at),
        (259, short, 1, 1),  # not compressed
        (262, short, 1, 2),  # RGB
        (273, long, 1, data_at),
        (277, short, 1, 3),  # samples a pixel
        (278, long, 1, height),  # all rows in one strip
        (279, long, 1, len(data)),
    ]
    directory = b"".join(struct.pack("<HHII", *field) for field in fields)
    return b"II*\0" + struct.pack("<IH", 8, entries) + directory + struct.pack("<I3H", 0, bits, bits, bits) + data


def read(tmp_path: Path, spacing: Spacing | None = None) -> PatientRecord:
    return LggSource(str(tmp_path), spacing).read(PATIENT)


def reasons(record: PatientRecord) -> dict[str, str]:
    """Reason of each reject, by file name."""
    return {Path(row["source_uri"]).name: row["reason"] for row in record.rejects.to_pylist()}


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
    assert record.slices["slice_id"].to_pylist() == ["a_1"]
    assert reasons(record) == {"a_2_mask.tif": "mask without an image"}
    assert record.rejects["patient_id"].to_pylist() == [PATIENT]


@pytest.mark.parametrize("name", ["notes.txt", "a.tif", "a_1.png", "_1.tif", "a_1_mask_old.tif", "a_x.tif"])
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
    assert record.slices["slice_id"].to_pylist() == ["a_1"]
    assert reasons(record) == {"a_1.tiff": "a file of the same name with the other ending came before"}


def test_a_broken_image_takes_its_mask_with_it_and_leaves_the_others(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / PATIENT, f"a_{number}.tif", rgb())
        save(tmp_path / PATIENT, f"a_{number}_mask.tif", gray())
    (tmp_path / PATIENT / "a_1.tif").write_bytes(b"")
    record = read(tmp_path)
    assert record.slices["slice_id"].to_pylist() == ["a_2"]
    assert set(reasons(record)) == {"a_1.tif", "a_1_mask.tif"}
    assert reasons(record)["a_1.tif"].startswith("unreadable TIFF")
    assert reasons(record)["a_1_mask.tif"] == "its image a_1.tif was left out"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_image_cut_off_anywhere_is_left_out(tmp_path: Path) -> None:
    whole = rgb_tiff(2, 3, 8, bytes(range(18)))
    (tmp_path / PATIENT).mkdir()
    for length in range(len(whole)):
        (tmp_path / PATIENT / f"a_{length}.tif").write_bytes(whole[:length])
    (tmp_path / PATIENT / "a_999.tif").write_bytes(whole)
    record = read(tmp_path)
    assert record.slices["slice_id"].to_pylist() == ["a_999"]
    assert record.slices["pixels"].to_pylist() == [bytes(range(18))]
    assert record.rejects.num_rows == len(whole)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_image_with_any_byte_of_its_header_wrong_is_read_or_left_out(tmp_path: Path) -> None:
    whole = rgb_tiff(2, 3, 8, bytes(range(18)))
    header = len(whole) - 18
    (tmp_path / PATIENT).mkdir()
    for position in range(header):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / PATIENT / f"a_{position}.tif").write_bytes(damaged)
    record = read(tmp_path)
    assert record.slices.num_rows + record.rejects.num_rows == header
    assert "a_0.tif" in reasons(record)


def test_a_reason_is_one_line_and_the_same_at_every_reading(tmp_path: Path) -> None:
    (tmp_path / PATIENT).mkdir()
    (tmp_path / PATIENT / "a_1.tif").write_bytes(b"no TIFF")
    reason = reasons(read(tmp_path))["a_1.tif"]
    assert reason == reasons(read(tmp_path))["a_1.tif"]
    assert "0x" not in reason
    assert "\n" not in reason


def test_a_png_that_is_called_tif_is_left_out(tmp_path: Path) -> None:
    (tmp_path / PATIENT).mkdir()
    Image.fromarray(rgb()).save(tmp_path / PATIENT / "a_1.tif", format="PNG")
    assert "a_1.tif" in reasons(read(tmp_path))


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 2), (1, 6)])
def test_a_mask_of_another_size_is_left_out_and_its_image_kept(tmp_path: Path, height: int, width: int) -> None:
    save(tmp_path / PATIENT, "a_1.tif", rgb(2, 3))
    save(tmp_path / PATIENT, "a_1_mask.tif", gray(height, width))
    record = read(tmp_path)
    assert record.slices["mask"].to_pylist() == [None]
    assert reasons(record) == {
        "a_1_mask.tif": f"mask of {height}x{width} pixels on an image of 2x3; its image is kept without a mask"
    }


@pytest.mark.parametrize("values", [[0, 128, 255], [0, 1, 255], [2, 2, 2]])
def test_a_mask_with_other_values_is_left_out_and_its_image_kept(tmp_path: Path, values: list[int]) -> None:
    save(tmp_path / PATIENT, "a_1.tif", rgb(1, 3))
    save(tmp_path / PATIENT, "a_1_mask.tif", np.array([values], dtype=np.uint8))
    record = read(tmp_path)
    assert record.slices["mask"].to_pylist() == [None]
    assert "mask with values other than 0 and 1 or 255" in reasons(record)["a_1_mask.tif"]


def test_a_color_mask_is_left_out_and_its_image_kept(tmp_path: Path) -> None:
    save(tmp_path / PATIENT, "a_1.tif", rgb())
    save(tmp_path / PATIENT, "a_1_mask.tif", rgb(value=255))
    record = read(tmp_path)
    assert record.slices["mask"].to_pylist() == [None]
    assert "mask of mode RGB" in reasons(record)["a_1_mask.tif"]


def test_an_image_of_several_frames_is_left_out(tmp_path: Path) -> None:
    (tmp_path / PATIENT).mkdir()
    frame = Image.fromarray(rgb())
    frame.save(tmp_path / PATIENT / "a_1.tif", format="TIFF", save_all=True, append_images=[frame])
    assert "2 frames" in reasons(read(tmp_path))["a_1.tif"]


def test_a_gray_image_of_8_bit_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / PATIENT, "a_1.tif", gray())
    assert "image of mode L, expected RGB" in reasons(read(tmp_path))["a_1.tif"]


def test_a_gray_image_of_16_bit_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / PATIENT, "a_1.tif", np.full((2, 3), 40_000, dtype=np.uint16))
    assert "16-bit, expected 8-bit" in reasons(read(tmp_path))["a_1.tif"]


def test_a_color_image_of_16_bit_is_left_out_instead_of_cut_to_8(tmp_path: Path) -> None:
    content = rgb_tiff(2, 3, 16, bytes(2 * 3 * 3 * 2))
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "RGB"  # Pillow would read it, and drop half of the bits
    (tmp_path / PATIENT).mkdir()
    (tmp_path / PATIENT / "a_1.tif").write_bytes(content)
    record = read(tmp_path)
    assert record.slices.num_rows == 0
    assert "16-bit, expected 8-bit" in reasons(record)["a_1.tif"]


@pytest.mark.parametrize("side", [5_000, 10_000, 60_000])  # above our limit, Pillow's warning, Pillow's error
def test_a_small_file_that_claims_a_huge_image_is_not_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / PATIENT).mkdir()
    (tmp_path / PATIENT / "a_1.tif").write_bytes(rgb_tiff(side, side, 8, bytes(18)))
    record = read(tmp_path)
    assert record.slices.num_rows == 0
    assert "claims" in reasons(record)["a_1.tif"]


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
    assert "1 TIFF files in no patient's folder are passed over, the first is 'd_1.tif'" in capsys.readouterr().out
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
    scandir, read_bytes = os.scandir, storage.read_bytes

    def refused(path: str) -> Any:
        if str(path) in (f"{tmp_path}/A", f"{tmp_path}/B/B_1.tif"):
            raise OSError(code, os.strerror(code), str(path))
        return scandir(path) if Path(path).is_dir() else read_bytes(path)

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(storage, "read_bytes", refused)
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

    monkeypatch.setattr(storage, "read_bytes", stale)
    with pytest.raises(OSError, match="Stale"):
        read(tmp_path)


def test_a_slice_number_that_an_archive_cannot_hold_is_left_out(tmp_path: Path) -> None:
    for number in (2**31 - 1, 2**31):
        save(tmp_path / PATIENT, f"a_{number}.tif", rgb())
    record = read(tmp_path)
    assert record.slices["slice_index"].to_pylist() == [2**31 - 1]
    assert reasons(record) == {f"a_{2**31}.tif": "its slice number is above 2147483647"}


def test_names_that_are_not_utf_8_are_left_out_and_can_be_read_in_the_reason(tmp_path: Path) -> None:
    patient, latin = b"M\xfcller".decode(errors="surrogateescape"), b"M\xfcller_1.tif".decode(errors="surrogateescape")
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
    assert source.read("1.2::3").slices["slice_id"].to_pylist() == ["a::b_1"]


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere: no such folder"):
        LggSource(f"{tmp_path}/nowhere", None).patients()


def test_a_source_without_patients_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, "a_1.tif", rgb())
    with pytest.raises(SourceError, match="one folder a patient"):
        LggSource(str(tmp_path), None).patients()
