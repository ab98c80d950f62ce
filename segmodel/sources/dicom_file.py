"""Opens DICOM files, and estimates the memory that a file takes before it is read."""

import io
import os
import zlib
from typing import Any

from segmodel.storage import store

MAX_FILE_BYTES = 1024**3
"""Largest file that is read; for a deflated file, its size when unpacked."""

_BUFFER = 64 * 1024
_PART = 1024**2
_BARE_STARTS = [
    bytes.fromhex(tag) for tag in ("02000000", "02000200", "08000000", "08000500", "08000800")
]
"""First tags of files without a preamble, little endian: group, element."""
_META_START, _META_VALUES = 132, 144
"""Bytes before the file's meta elements, and before those that their length counts."""


class _Buffered(io.BufferedReader):
    """A file that pydicom may read a few bytes at a time."""

    name = ""
    """pydicom needs this attribute; files on S3 do not have it."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.raw.size if hasattr(self.raw, "size") else os.fstat(self.fileno()).st_size


def open_dicom(uri: str) -> Any:
    """A file to read; close it."""
    return _Buffered(store.open_input(uri, buffered=False), _BUFFER)


def may_be_bare(start: bytes) -> bool:
    """Whether a file that begins so may be DICOM without a preamble, as old exports are."""
    return start[:4] in _BARE_STARTS


def why_too_large(file: Any) -> str | None:
    """Why a DICOM file would take too much memory, or None; a file of another kind never does.

    Args:
        file: opened to read, at its start; is left there.
    """
    start, size = file.read(4096), file.size
    file.seek(0)
    if start[128:_META_START] != b"DICM" and not may_be_bare(start):
        return None
    if size > MAX_FILE_BYTES:
        return f"takes {size:,} bytes; more than {MAX_FILE_BYTES:,} are not read"
    if b"1.2.840.10008.1.2.1.99" not in start:  # deflated, the one syntax that packs the header
        return None
    length = int.from_bytes(start[_META_VALUES - 4 : _META_VALUES], "little")
    file.seek(_META_VALUES + length)
    packed, unpacked = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while (part := packed.unconsumed_tail or file.read(_PART)) and unpacked <= MAX_FILE_BYTES:
        unpacked += len(packed.decompress(part, _PART))
    file.seek(0)
    return f"unpacks to more than {MAX_FILE_BYTES:,} bytes" if unpacked > MAX_FILE_BYTES else None
