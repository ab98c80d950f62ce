"""Identifies the source files of a patient, so that changes are noticed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFiles:
    """The identity of one patient's source files."""

    count: int
    """Number of files."""
    listing: str
    """Hash of their names, sizes and times (on S3: ETags). Equal hashes mean equal files."""
    content: str
    """Hash of their names and bytes. Files that were copied keep it."""


def hash_of(values: Mapping[str, str]) -> str:
    """Hash names and their texts; the order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(f"{name}\0{values[name]}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]
