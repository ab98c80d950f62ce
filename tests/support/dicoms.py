"""Small DICOM files whose pixels and positions are known."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Along a row to the left, along a column to the back."""


def uid(text: str) -> str:
    """The same UID for the same text."""
    return generate_uid(entropy_srcs=[text])


def dataset(pixels: np.ndarray, z: float = 0.0, **elements: Any) -> FileDataset:
    """A classic MR image of a FLAIR series; elements are replaced, or removed with None."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": MR,
        "SOPInstanceUID": uid(
            f"{elements.get('SeriesInstanceUID', 'flair')} {z} {sorted(elements)}"
        ),
        "PatientID": "P1",
        "PatientName": "Secret^Name",
        "PatientBirthDate": "19500102",
        "StudyInstanceUID": uid("study"),
        "StudyDate": "20200131",
        "SeriesInstanceUID": uid("flair"),
        "SeriesNumber": 5,
        "SeriesDescription": "AX T2 FLAIR",
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "FrameOfReferenceUID": uid("frame"),
        "ImageOrientationPatient": list(AXIAL),
        "ImagePositionPatient": [0.0, 0.0, z],
        "PixelSpacing": [0.5, 0.25],
        "SliceThickness": 4.0,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    for name, value in {**values, **elements}.items():
        if value is not None:
            setattr(made, name, value)
    made.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    meta.MediaStorageSOPClassUID = made.SOPClassUID
    meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return made


def save(path: Path, pixels: np.ndarray, z: float = 0.0, **elements: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset(pixels, z, **elements).save_as(path, enforce_file_format=True)
    return path


def series(
    folder: Path, name: str, positions: list[float], value: int = 100, **elements: Any
) -> None:
    """A series of 4x6 pixels; the first pixel of each slice tells its position."""
    for number, z in enumerate(positions):
        pixels = np.full((4, 6), value, np.uint16)
        pixels[0, 0] = 1000 + round(10 * z)
        more = {"SeriesInstanceUID": uid(name), "SOPInstanceUID": uid(f"{name} {number}")}
        save(folder / f"{name}_{number}.dcm", pixels, z, **{**more, **elements})


def enhanced(path: Path, pixels: np.ndarray, positions: list[float], slope: float = 1.0) -> Path:
    """An Enhanced MR file with a frame at each position, in that order."""
    made = dataset(pixels, SOPClassUID=ENHANCED_MR, NumberOfFrames=len(positions))
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(made, name)
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([group(ImageOrientationPatient=list(AXIAL))])
    shared.PixelMeasuresSequence = Sequence([group(PixelSpacing=[0.5, 0.25], SliceThickness=9)])
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for z in positions:
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([group(ImagePositionPatient=[0.0, 0.0, z])])
        frame.PixelValueTransformationSequence = Sequence(
            [group(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")]
        )
        frames.append(frame)
    made.PerFrameFunctionalGroupsSequence = Sequence(frames)
    made.file_meta.MediaStorageSOPClassUID = UID(ENHANCED_MR)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def group(**elements: Any) -> Dataset:
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made
