"""Files of the LGG data set's layout, made up, and what is read from them."""

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from segmodel.core.geometry import Spacing
from segmodel.sources.base import PatientRecord
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
    """An uncompressed little-endian RGB TIFF with the given header, true or not."""
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
    return (
        b"II*\0"
        + struct.pack("<IH", 8, entries)
        + directory
        + struct.pack("<I3H", 0, bits, bits, bits)
        + data
    )


def read(tmp_path: Path, spacing: Spacing | None = None) -> PatientRecord:
    return LggSource(str(tmp_path), spacing).read(PATIENT)


def reasons(record: PatientRecord) -> dict[str, str]:
    """Reason of each reject, by file name."""
    return {Path(row["source_uri"]).name: row["reason"] for row in record.rejects.to_pylist()}
