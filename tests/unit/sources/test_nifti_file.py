import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from segmodel.sources.base import RejectError
from segmodel.sources.nifti_file import read_nifti
from tests.support.niftis import LPS, head, save, spaced


def rejected(path: Path, **more: object) -> str:
    with pytest.raises(RejectError) as reject:
        read_nifti(str(path), **more)
    return str(reject.value)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("big_endian", [False, True])
def test_voxels_and_positions_are_those_of_the_file(
    tmp_path: Path, name: str, kind: type, big_endian: bool
) -> None:
    path = save(tmp_path / name, head(), spaced(1, 2, 5), kind=kind, big_endian=big_endian)
    volume = read_nifti(str(path))
    assert np.array_equal(volume.voxels, head())
    assert volume.grid.axis_codes == "LPS"
    assert volume.grid.spacing_mm == pytest.approx((1, 2, 5))
    assert volume.notes == ()


def test_slope_and_negative_values_are_applied(tmp_path: Path) -> None:
    stored = np.array([[[-4, 2, 6]]], np.int16)
    image = nibabel.Nifti1Image(stored, LPS)
    image.header.set_slope_inter(0.5, 10)
    image.set_sform(LPS, 1)
    path = tmp_path / "a.nii"
    path.write_bytes(with_slope(image.to_bytes(), 0.5, 10))
    assert read_nifti(str(path)).voxels.ravel().tolist() == [8, 11, 13]


def with_slope(content: bytes, slope: float, intercept: float) -> bytes:
    """scl_slope and scl_inter are at bytes 112 to 120 of a NIfTI-1 header."""
    return content[:112] + np.array([slope, intercept], "<f4").tobytes() + content[120:]


def test_of_two_orientations_that_disagree_sform_is_taken_and_noted(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(head(), None)
    image.set_sform(spaced(1, 1, 3), 1)
    image.set_qform(spaced(1, 1, 4), 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_nifti(str(tmp_path / "a.nii"))
    assert volume.grid.spacing_mm[2] == pytest.approx(3)
    assert volume.notes == ("sform and qform disagree: sform taken",)


def test_qform_alone_is_enough(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", head(), spaced(1, 1, 5), sform=0)
    assert read_nifti(str(path)).grid.spacing_mm == pytest.approx((1, 1, 5))


def test_without_an_orientation_the_flag_is_named_and_works(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", head(), spaced(1, 2, 5), sform=0, qform=0)
    assert "--assume-axes" in rejected(path)
    volume = read_nifti(str(path), assume_axes="RAS")
    assert volume.grid.axis_codes == "RAS"
    assert volume.grid.spacing_mm == pytest.approx((1, 2, 5))
    assert "RAS assumed" in volume.notes[0]


@pytest.mark.parametrize(("unit", "mm"), [("meter", 5000.0), ("micron", 0.005), ("unknown", 5.0)])
def test_units_become_millimetres(tmp_path: Path, unit: str, mm: float) -> None:
    path = save(tmp_path / "a.nii", head(), spaced(1, 1, 5), unit=unit)
    volume = read_nifti(str(path))
    assert volume.grid.spacing_mm[2] == pytest.approx(mm)
    assert "mm" in volume.notes[0]


def test_nan_and_infinity_are_counted(tmp_path: Path) -> None:
    voxels = head().astype(np.float32)
    voxels[0, 0, :3] = np.nan, np.inf, -np.inf
    assert rejected(save(tmp_path / "a.nii.gz", voxels)) == "3 voxels are NaN or infinite"


def test_a_time_series_is_told_from_a_fourth_axis_of_one(tmp_path: Path) -> None:
    four = np.stack([head()] * 7, axis=-1)
    assert "series of 7 volumes" in rejected(save(tmp_path / "many.nii", four))
    one = save(tmp_path / "one.nii", head()[..., None])
    assert np.array_equal(read_nifti(str(one)).voxels, head())


def test_one_image_of_several_along_the_fourth_axis(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.stack([head(), head() + 1000], axis=-1))
    assert np.array_equal(read_nifti(str(path), component=1).voxels, head() + 1000)
    assert "no image number 2" in rejected(path, component=2)


def test_colours_are_no_intensities(tmp_path: Path) -> None:
    colours = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "RGB" in rejected(save(tmp_path / "a.nii", colours))


def test_a_singular_affine_has_no_positions(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(head(), None)
    image.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), 1)
    nibabel.save(image, tmp_path / "a.nii")
    assert "singular" in rejected(tmp_path / "a.nii")


def test_a_cut_off_file_says_so_compressed_or_not(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.nii", head((40, 40, 40))).read_bytes()
    (tmp_path / "a.nii").write_bytes(whole[:-100])
    assert "ends 100 bytes too early" in rejected(tmp_path / "a.nii")
    packed = gzip.compress(whole)
    (tmp_path / "b.nii.gz").write_bytes(packed[: len(packed) // 2])
    assert rejected(tmp_path / "b.nii.gz") == "damaged gzip: the file is cut off"
    (tmp_path / "b.nii.gz").write_bytes(packed[:-4])  # within the checksum
    assert rejected(tmp_path / "b.nii.gz") == "damaged gzip: the file is cut off"
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(whole[:-100]))
    assert "ends 100 bytes too early" in rejected(tmp_path / "c.nii.gz")


def test_a_flipped_bit_of_a_compressed_file_is_noticed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 9999, (30, 30, 30)).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", noise)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert "damaged gzip" in rejected(path)


def test_a_header_that_claims_a_terabyte_allocates_nothing(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "a.nii", head()).read_bytes())
    content[42:48] = np.array([10_000, 10_000, 10_000], "<i2").tobytes()  # dim[1] to dim[3]
    (tmp_path / "a.nii").write_bytes(bytes(content))
    assert "claims 10000 x 10000 x 10000 voxels" in rejected(tmp_path / "a.nii")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert "claims" in rejected(tmp_path / "b.nii.gz")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.nii", head()).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(whole + bytes(64 * 1024 * 1024)))
    assert "more than its header says" in rejected(tmp_path / "b.nii.gz")


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"\x1f\x8b", gzip.compress(b"text" * 200, mtime=0)]
)
def test_what_is_no_nifti_is_a_reject_and_no_crash(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert rejected(tmp_path / "a.nii.gz")


def test_a_flipped_bit_anywhere_in_the_header_is_a_volume_or_a_reject(tmp_path: Path) -> None:
    content = save(tmp_path / "a.nii", head()).read_bytes()
    for position in range(352):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        (tmp_path / "a.nii").write_bytes(bytes(damaged))
        try:
            assert read_nifti(str(tmp_path / "a.nii")).voxels.ndim == 3
        except RejectError:
            continue


def test_a_time_series_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "a.nii", np.zeros((4, 4, 4, 2), np.uint8)).read_bytes())
    content[48:50] = np.array([30_000], "<i2").tobytes()  # dim[4]
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert "a series of 30000 volumes" in rejected(tmp_path / "a.nii.gz")


def test_a_bomb_that_keeps_to_its_own_header_is_refused_by_its_size(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "a.nii", head()).read_bytes())
    content[42:48] = np.array([1100, 1100, 1100], "<i2").tobytes()  # int16: 2.7 GB
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    assert "claims 1100 x 1100 x 1100 voxels" in rejected(tmp_path / "a.nii.gz")


def test_a_damaged_qform_beside_a_good_sform_is_noted(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "a.nii", head()).read_bytes())
    content[256:260] = np.array([7], "<f4").tobytes()  # quatern_b: no rotation
    (tmp_path / "a.nii").write_bytes(bytes(content))
    assert "sform and qform disagree: sform taken" in read_nifti(str(tmp_path / "a.nii")).notes


def test_a_gzip_file_of_many_members_is_read_in_time(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.nii", head((40, 40, 40))).read_bytes()
    pieces = [gzip.compress(whole[start : start + 4]) for start in range(0, len(whole), 4)]
    (tmp_path / "b.nii.gz").write_bytes(b"".join(pieces))  # 32,088 members
    found = read_nifti(str(tmp_path / "b.nii.gz")).voxels
    assert np.array_equal(found, head((40, 40, 40)))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_voxels_that_begin_within_the_header_are_refused(tmp_path: Path, kind: type) -> None:
    path = save(tmp_path / "a.nii", head(), kind=kind)
    header = nibabel.load(path).header
    header["vox_offset"] = 0
    path.write_bytes(header.binaryblock + path.read_bytes()[len(header.binaryblock) :])
    assert "its header says that the voxels begin at byte 0" in rejected(path)


def test_voxels_that_32_bits_cannot_hold_are_counted_as_infinite(tmp_path: Path) -> None:
    voxels = head().astype(np.float64)
    voxels[0, 0, :2] = (1e300, -1e300)
    assert rejected(save(tmp_path / "a.nii", voxels)) == "2 voxels are NaN or infinite"
