import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiffs import PATIENT, gray, read, reasons, rgb, rgb_tiff, save


def test_a_broken_image_takes_its_mask_with_it_and_leaves_the_others(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / PATIENT, f"a_{number}.tif", rgb())
        save(tmp_path / PATIENT, f"a_{number}_mask.tif", gray())
    (tmp_path / PATIENT / "a_1.tif").write_bytes(b"")
    record = read(tmp_path)
    assert record.slices["slice_id"].to_pylist() == [f"{PATIENT}/a_2"]
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
    assert record.slices["slice_id"].to_pylist() == [f"{PATIENT}/a_999"]
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
def test_a_mask_of_another_size_is_left_out_and_its_image_kept(
    tmp_path: Path, height: int, width: int
) -> None:
    save(tmp_path / PATIENT, "a_1.tif", rgb(2, 3))
    save(tmp_path / PATIENT, "a_1_mask.tif", gray(height, width))
    record = read(tmp_path)
    assert record.slices["mask"].to_pylist() == [None]
    assert reasons(record) == {
        "a_1_mask.tif": f"mask of {height}x{width} pixels on an image of 2x3; "
        "its image is kept without a mask"
    }


@pytest.mark.parametrize("values", [[0, 128, 255], [0, 1, 255], [2, 2, 2]])
def test_a_mask_with_other_values_is_left_out_and_its_image_kept(
    tmp_path: Path, values: list[int]
) -> None:
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


@pytest.mark.parametrize(
    "side", [5_000, 10_000, 60_000]
)  # above our limit, Pillow's warning, Pillow's error
def test_a_small_file_that_claims_a_huge_image_is_not_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / PATIENT).mkdir()
    (tmp_path / PATIENT / "a_1.tif").write_bytes(rgb_tiff(side, side, 8, bytes(18)))
    record = read(tmp_path)
    assert record.slices.num_rows == 0
    assert "claims" in reasons(record)["a_1.tif"]


def save_turned(folder: Path, name: str, values: np.ndarray, orientation: int | None) -> None:
    """Save a TIFF with an orientation tag (6: its first row is shown as the right column)."""
    folder.mkdir(parents=True, exist_ok=True)
    tags = {} if orientation is None else {274: orientation}
    Image.fromarray(values).save(folder / name, format="TIFF", tiffinfo=tags)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_mask_with_the_same_orientation_are_turned_alike(
    tmp_path: Path, orientation: int
) -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    mask = np.array([[0, 0, 255], [0, 0, 0]], dtype=np.uint8)  # the pixel that starts with 6
    save_turned(tmp_path / PATIENT, "a_1.tif", pixels, orientation)
    save_turned(tmp_path / PATIENT, "a_1_mask.tif", mask, orientation)
    record = read(tmp_path)
    assert reasons(record) == {}
    row = record.slices.to_pylist()[0]
    assert (row["height"], row["width"]) == ((2, 3) if orientation < 5 else (3, 2))
    assert row["mask"].count(1) == 1
    assert row["pixels"][3 * row["mask"].index(1)] == 6


def test_orientation_6_turns_the_first_row_into_the_right_column(tmp_path: Path) -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    save_turned(tmp_path / PATIENT, "a_1.tif", pixels, 6)
    row = read(tmp_path).slices.to_pylist()[0]
    assert (row["height"], row["width"]) == (3, 2)
    assert list(row["pixels"][::3]) == [9, 0, 12, 3, 15, 6]


@pytest.mark.parametrize(("of_image", "of_mask"), [(6, None), (None, 6), (3, 1), (2, 4)])
def test_a_slice_whose_mask_has_another_orientation_is_left_out(
    tmp_path: Path, of_image: int | None, of_mask: int | None
) -> None:
    save_turned(tmp_path / PATIENT, "a_1.tif", rgb(2, 2), of_image)
    save_turned(tmp_path / PATIENT, "a_1_mask.tif", gray(2, 2), of_mask)
    record = read(tmp_path)
    assert record.slices.num_rows == 0
    assert reasons(record) == {
        "a_1.tif": f"its TIFF orientation is {of_image or 1}, its mask's is {of_mask or 1}",
        "a_1_mask.tif": "its image a_1.tif was left out",
    }


def test_an_orientation_that_the_standard_does_not_define_means_upright(tmp_path: Path) -> None:
    save_turned(tmp_path / PATIENT, "a_1.tif", rgb(2, 3), 9)
    save_turned(tmp_path / PATIENT, "a_1_mask.tif", gray(2, 3), None)
    record = read(tmp_path)
    assert record.slices["mask"].to_pylist() == [b"\x01" * 6]
