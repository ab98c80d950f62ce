"""What the header of a DICOM image says, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StoredPixels:
    """Where a file holds its pixels and how, so that they can be read without its header."""

    offset: int | None
    """Of the first byte of the pixels. None if there are none, or the whole file is deflated."""
    length: int
    """Bytes; -1 if the length is not stored and the end is marked."""
    uid_offset: int
    """Of the image's UID, to check that the file is still the same."""
    syntax_uid: str
    """Of the transfer syntax; empty where the file does not say."""
    options: Mapping[str, Any]
    """Of pydicom's decoders: size, bits, sign, frames."""
    padding: tuple[int, int] | None
    """The least and the greatest of the stored values that stand for no data."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """One image: a classic file, or one frame of a multi-frame file."""

    path: str
    """Below the source."""
    frame: int | None
    """From 0; None in a file of one image."""
    sop_instance_uid: str
    patient_id: str
    study_uid: str
    study_date: str | None
    """YYYYMMDD as the file has it."""
    series_uid: str
    series_number: int | None
    description: str
    """Of the series; the protocol's name if it has none."""
    protocol: str
    """Name of the protocol; at some hospitals that of the whole examination."""
    modality: str
    image_type: tuple[str, ...]
    sequence: str
    """Scanning sequence, variant and name, such as `SE IR SK`."""
    contrast: bool
    """Whether a contrast agent is named."""
    repetition_time: float | None
    """ms, as all times here."""
    echo_time: float | None
    inversion_time: float | None
    frame_of_reference: str | None
    orientation: tuple[float, ...] | None
    """Direction cosines along a row, then along a column; LPS."""
    position: tuple[float, ...] | None
    """Centre of the first pixel, LPS mm."""
    rows: int
    columns: int
    spacing: tuple[float, float] | None
    """Between rows, between columns; mm."""
    echo_number: int | None
    b_value: float | None
    temporal_position: int | None
    acquisition: int | None
    trigger_time: float | None
    transfer_syntax: str
    colour: bool
    rescale: tuple[float, float]
    """Slope and intercept that convert stored values to the scanner's."""
    pixels: StoredPixels


@dataclass(frozen=True)
class NoImage:
    """A file that holds no image of a scanner, and why: counted, and no error."""

    path: str
    kind: str


@dataclass(frozen=True)
class BrokenFile:
    """A file that should be an image and cannot be used."""

    path: str
    patient_id: str | None
    reason: str
