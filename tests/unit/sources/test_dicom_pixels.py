from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from segmodel.sources.base import RejectError
from segmodel.sources.dicom_headers import read_headers
from segmodel.sources.dicom_pixels import read_pixels
from tests.support.dicoms import dataset, enhanced, save


def pixels(folder: Path, name: str = "a") -> np.ndarray:
    images = read_headers(str(folder), name)
    assert isinstance(images, list)
    return read_pixels(str(folder), images)


RAMP = np.arange(24, dtype=np.uint16).reshape(4, 6)


def test_slope_and_intercept_of_each_slice_are_applied(tmp_path: Path) -> None:
    save(tmp_path / "a", RAMP, RescaleSlope=0.5, RescaleIntercept=-10)
    assert np.array_equal(pixels(tmp_path)[0], RAMP * 0.5 - 10)


def test_slope_of_each_frame_is_applied(tmp_path: Path) -> None:
    enhanced(tmp_path / "a", np.stack([RAMP, RAMP + 100]), [0.0, 5.0], slope=2.0)
    assert np.array_equal(pixels(tmp_path), np.stack([RAMP, RAMP + 100]) * 2.0)


def test_negative_values_stay_negative(tmp_path: Path) -> None:
    save(tmp_path / "a", RAMP.astype(np.int16) - 12)
    assert np.array_equal(pixels(tmp_path)[0], RAMP.astype(float) - 12)


@pytest.mark.parametrize("signed", [False, True])
def test_overlays_in_the_bits_above_are_no_intensities(tmp_path: Path, signed: bool) -> None:
    values = RAMP.astype(np.int16) - 12 if signed else RAMP.astype(np.int16)
    stored = (values & 0x0FFF) | 0x4000  # 12 bits, and an overlay in bit 14
    kind = np.int16 if signed else np.uint16
    save(tmp_path / "a", stored.astype(kind), BitsStored=12, HighBit=11)
    assert np.array_equal(pixels(tmp_path)[0], values)


def test_monochrome1_is_inverted_so_that_more_is_brighter(tmp_path: Path) -> None:
    save(tmp_path / "a", RAMP, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(pixels(tmp_path)[0], 65535 - RAMP)


def test_one_stored_value_is_inverted_to_one_value_in_every_slice(tmp_path: Path) -> None:
    shared = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    save(tmp_path / "a", np.array([[4095, 5]], np.uint16), **shared)
    save(tmp_path / "b", np.array([[5, 2000]], np.uint16), **shared)
    assert pixels(tmp_path, "a").tolist() == [[[0, 4090]]]
    assert pixels(tmp_path, "b").tolist() == [[[4090, 2095]]]


def test_values_in_the_highest_bits_are_kept(tmp_path: Path) -> None:
    save(tmp_path / "a", RAMP << 11, BitsStored=12, HighBit=15)
    assert np.array_equal(pixels(tmp_path)[0], RAMP.astype(int) * 2048)


def test_an_enhanced_file_of_one_frame_is_read(tmp_path: Path) -> None:
    enhanced(tmp_path / "a", RAMP[None], [3.0])
    assert np.array_equal(pixels(tmp_path), [RAMP])


def test_frames_without_pixels_are_a_reject(tmp_path: Path) -> None:
    made = dcmread(enhanced(tmp_path / "a", np.stack([RAMP, RAMP]), [0.0, 5.0]))
    made.NumberOfFrames, made.PixelData = 1, RAMP.tobytes()
    made.save_as(tmp_path / "a")
    with pytest.raises(RejectError, match="frame 2 has no pixels, only 1 frames have"):
        pixels(tmp_path)


def test_a_slope_of_0_is_no_slope(tmp_path: Path) -> None:
    save(tmp_path / "a", RAMP, RescaleSlope=0, RescaleIntercept=0)
    assert np.array_equal(pixels(tmp_path)[0], RAMP)


def test_padding_becomes_0(tmp_path: Path) -> None:
    save(tmp_path / "a", RAMP, PixelPaddingValue=5, RescaleIntercept=100, RescaleSlope=1)
    found = pixels(tmp_path)[0]
    assert found[0, 5] == 0
    assert found[0, 4] == 104


def test_padding_written_with_another_sign_than_the_pixels_becomes_0(tmp_path: Path) -> None:
    made = dataset(np.array([[-2, 5]], np.int16))
    made.add_new("PixelPaddingValue", "US", 65534)
    made.save_as(tmp_path / "a", enforce_file_format=True)
    assert pixels(tmp_path).tolist() == [[[0, 5]]]


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_the_sign_of_padding_is_that_of_the_pixels_where_a_file_names_no_types(
    tmp_path: Path, kind: type
) -> None:
    made = dataset(np.array([[-2, 5]], np.int16).astype(kind))
    made["PixelRepresentation"].value = int(kind is np.int16)
    made.PixelPaddingValue = int(np.int16(-2).astype(kind))
    made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    made.save_as(tmp_path / "a", enforce_file_format=True)
    assert pixels(tmp_path).tolist() == [[[0, 5]]]


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
    ids=lambda syntax: syntax.name,
)
def test_every_lossless_transfer_syntax_gives_the_same_pixels(tmp_path: Path, syntax: str) -> None:
    noise = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    made = dataset(noise, BitsStored=12, HighBit=11)
    if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        made.compress(syntax)
    made.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        made.PixelData = noise.astype(">u2").tobytes()
        made.set_original_encoding(False, False)
    made.save_as(tmp_path / "a", enforce_file_format=True)
    assert np.array_equal(pixels(tmp_path)[0], noise)


def test_a_syntax_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    made = dataset(RAMP)
    made.compress(RLELossless)
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    made.save_as(tmp_path / "a", enforce_file_format=True)
    with pytest.raises(RejectError, match=r"image \S+: its pixels \(MPEG2.*cannot be decoded"):
        pixels(tmp_path)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_file_without_preamble_and_meta_elements_is_read(tmp_path: Path, implicit: bool) -> None:
    made = dataset(RAMP)
    made.preamble, made.file_meta = None, FileMetaDataset()
    made.save_as(tmp_path / "a", implicit_vr=implicit, little_endian=True)
    assert (tmp_path / "a").read_bytes().startswith(b"\10\0\10\0")
    assert np.array_equal(pixels(tmp_path)[0], RAMP)


def test_a_file_without_pixels_or_that_names_no_syntax_is_a_reject(tmp_path: Path) -> None:
    made = dataset(RAMP)
    del made.PixelData
    made.save_as(tmp_path / "a", enforce_file_format=True)
    with pytest.raises(RejectError, match=r"image \S+: has no pixels"):
        pixels(tmp_path)
    made = dataset(RAMP)
    del made.file_meta.TransferSyntaxUID
    made.save_as(tmp_path / "a", implicit_vr=False, little_endian=True)
    with pytest.raises(RejectError, match=r"its pixels \(unknown\) cannot be decoded"):
        pixels(tmp_path)


def test_truncated_pixels_are_a_reject(tmp_path: Path) -> None:
    content = save(tmp_path / "a", RAMP).read_bytes()
    images = read_headers(str(tmp_path), "a")
    (tmp_path / "a").write_bytes(content[:-20])
    with pytest.raises(RejectError, match="image "):
        read_pixels(str(tmp_path), images)


def test_a_file_that_became_another_between_header_and_pixels_is_a_reject(tmp_path: Path) -> None:
    save(tmp_path / "a", RAMP)
    images = read_headers(str(tmp_path), "a")
    save(tmp_path / "a", RAMP, z=7.0)
    with pytest.raises(RejectError, match="changed while it was being read"):
        read_pixels(str(tmp_path), images)
