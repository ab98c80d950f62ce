"""What an archive remembers of the files that a patient was made from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFiles:
    """The files of one patient, to tell later whether they are still the same."""

    count: int
    """Number of files."""
    listing: str
    """Hash of their names, sizes and times (on S3: ETags). Equal hashes mean equal files."""
    content: str
    """Hash of their names and bytes. Files that were copied keep it."""


def hash_of(values: Mapping[str, str]) -> str:
    """A hash of names and of a text for each, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(f"{name}\0{values[name]}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]
