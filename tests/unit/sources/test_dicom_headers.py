from datetime import date
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from segmodel.sources import dicom_file
from segmodel.sources.dicom_headers import read_headers, read_owner
from segmodel.sources.dicom_image import BrokenFile, ImageHeader, NoImage
from segmodel.sources.series_choices import to_date
from tests.support.dicoms import dataset, enhanced, group, save

PIXELS = np.zeros((4, 6), np.uint16)


def header(folder: Path, name: str = "a") -> ImageHeader:
    found = read_headers(str(folder), name)
    assert isinstance(found, list)
    (image,) = found
    return image


def test_pixel_spacing_is_that_of_rows_first(tmp_path: Path) -> None:
    save(tmp_path / "a", PIXELS, z=3.5)
    image = header(tmp_path)
    assert image.spacing == (0.5, 0.25)  # between rows, between columns
    assert (image.rows, image.columns) == (4, 6)
    assert image.position == (0, 0, 3.5)
    assert image.description == "AX T2 FLAIR"
    assert image.study_date == "20200131"


def test_names_and_birth_dates_are_not_read(tmp_path: Path) -> None:
    save(tmp_path / "a", PIXELS)
    text = repr(header(tmp_path))
    assert "Secret" not in text
    assert "19500102" not in text


def test_each_frame_of_an_enhanced_file_has_a_position(tmp_path: Path) -> None:
    enhanced(tmp_path / "a", np.zeros((2, 4, 6), np.uint16), [5.0, 0.0])
    found = read_headers(str(tmp_path), "a")
    assert isinstance(found, list)
    assert [(image.frame, image.position) for image in found] == [(0, (0, 0, 5)), (1, (0, 0, 0))]
    assert found[0].spacing == (0.5, 0.25)


def test_what_a_frame_says_of_itself_counts_before_what_the_file_says(tmp_path: Path) -> None:
    made = dcmread(enhanced(tmp_path / "a", np.zeros((2, 4, 6), np.uint16), [5.0, 0.0]))
    kind = group(FrameType=["DERIVED", "PRIMARY"])
    made.PerFrameFunctionalGroupsSequence[1].MRImageFrameTypeSequence = Sequence([kind])
    made.save_as(tmp_path / "a", enforce_file_format=True)
    found = read_headers(str(tmp_path), "a")
    assert isinstance(found, list)
    assert [image.image_type[0] for image in found] == ["ORIGINAL", "DERIVED"]


def test_whose_an_image_is_stands_in_its_first_elements(tmp_path: Path) -> None:
    content = save(tmp_path / "a", PIXELS).read_bytes()
    (tmp_path / "a").write_bytes(content[: content.index(b"P1") + 40])
    assert read_owner(str(tmp_path), "a") == "P1"
    made = dataset(PIXELS, SOPClassUID="1.2.3", Rows=None)
    made.save_as(tmp_path / "b", enforce_file_format=True)
    assert read_owner(str(tmp_path), "b") == NoImage("b", "1.2.3")


def test_a_backslash_in_an_id_is_a_part_of_it(tmp_path: Path) -> None:
    save(tmp_path / "a", PIXELS, PatientID=["A", "B"])
    assert read_owner(str(tmp_path), "a") == "A\\B"


def test_several_frames_without_positions_are_broken(tmp_path: Path) -> None:
    save(tmp_path / "a", np.zeros((2, 4, 6), np.uint16), NumberOfFrames=2)
    found = read_headers(str(tmp_path), "a")
    assert isinstance(found, BrokenFile)
    assert found.patient_id == "P1"
    assert "2 frames without a position" in found.reason


def test_an_enhanced_image_names_its_contrast_agent_in_a_sequence(tmp_path: Path) -> None:
    agent = [group(CodeMeaning="Gadobutrol")]
    save(tmp_path / "a", PIXELS, ContrastBolusAgentSequence=agent)
    (image,) = read_headers(str(tmp_path), "a")
    assert image.contrast


@pytest.mark.parametrize(
    "content", [b"", b"text", bytes(500), b"\0" * 128 + b"DICX", b"\10\0\10\0" * 99]
)
def test_a_file_of_another_kind_is_counted_and_no_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert read_headers(str(tmp_path), "a") == NoImage("a", "not DICOM")


def test_a_report_and_a_dicomdir_are_no_images(tmp_path: Path) -> None:
    report = "1.2.840.10008.5.1.4.1.1.88.11"
    made = dataset(PIXELS, SOPClassUID=report, Rows=None, Columns=None)
    made.file_meta.MediaStorageSOPClassUID = report
    del made.PixelData
    made.save_as(tmp_path / "a", enforce_file_format=True)
    assert read_headers(str(tmp_path), "a") == NoImage("a", "Basic Text SR Storage")
    made.SOPClassUID = "1.2.840.10008.1.3.10"
    made.save_as(tmp_path / "b", enforce_file_format=True)
    assert read_headers(str(tmp_path), "b") == NoImage("b", "DICOMDIR")


@pytest.mark.parametrize("name", ["PatientID", "SeriesInstanceUID", "StudyInstanceUID", "Rows"])
def test_an_image_without_an_id_is_broken(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a", PIXELS, **{name: None})
    found = read_headers(str(tmp_path), "a")
    assert isinstance(found, BrokenFile)
    assert found.reason == f"has no {name}"


def test_a_header_cut_anywhere_is_broken_or_whole_and_never_a_crash(tmp_path: Path) -> None:
    content = save(tmp_path / "a", PIXELS).read_bytes()
    kinds = set()
    for length in range(0, len(content), 7):
        (tmp_path / "b").write_bytes(content[:length])
        kinds.add(type(read_headers(str(tmp_path), "b")))
    assert kinds <= {list, NoImage, BrokenFile}


def test_a_flipped_bit_in_a_header_is_never_a_crash(tmp_path: Path) -> None:
    content = save(tmp_path / "a", PIXELS).read_bytes()
    for position in range(128, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        (tmp_path / "b").write_bytes(bytes(damaged))
        assert isinstance(read_headers(str(tmp_path), "b"), list | NoImage | BrokenFile)


def test_screenshots_are_counted_and_are_no_images_of_a_scanner(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6), np.uint8)
    save(tmp_path / "a", pixels, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="MR")
    assert read_headers(str(tmp_path), "a") == NoImage("a", "secondary capture")


@pytest.mark.parametrize(("agent", "named"), [("GADAVIST", True), ("NONE", False), ("", False)])
def test_a_contrast_agent_is_named_or_not(tmp_path: Path, agent: str, named: bool) -> None:
    save(tmp_path / "a", np.zeros((4, 6), np.uint16), ContrastBolusAgent=agent)
    (image,) = read_headers(str(tmp_path), "a")
    assert image.contrast is named


def test_a_deflated_file_is_unpacked_no_further_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dataset(np.zeros((2000, 2000), np.uint16))
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    made.save_as(tmp_path / "a", enforce_file_format=True)
    assert (tmp_path / "a").stat().st_size < 100_000
    (image,) = read_headers(str(tmp_path), "a")
    assert (image.rows, image.transfer_syntax) == (2000, "Deflated Explicit VR Little Endian")
    monkeypatch.setattr(dicom_file, "MAX_FILE_BYTES", 4_000_000)
    found = read_headers(str(tmp_path), "a")
    assert isinstance(found, BrokenFile)
    assert found.reason == "unpacks to more than 4,000,000 bytes"


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("20200131", date(2020, 1, 31)),
        ("2020131", None),
        ("202011", None),
        ("20209999", None),
        ("", None),
        (None, None),
    ],
)
def test_a_date_that_is_not_eight_digits_is_unknown_and_not_guessed(
    text: str | None, day: date | None
) -> None:
    assert to_date(text) == day
