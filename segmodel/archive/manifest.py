"""archive.json, which is written last and names the files that count, and how these are named."""

import json
import re
import uuid
from dataclasses import dataclass, fields
from typing import Any

from segmodel.core import schema
from segmodel.core.errors import ArchiveError
from segmodel.storage import store

MANIFEST = "archive.json"
REJECTS = "rejects"
"""Folder of the files that list what was left out, beside the slices' files."""
EARLIER_REJECTS = "rejects.parquet"
"""The one that earlier versions write."""

_INGEST = r"(?P<ingest>[0-9a-f]{12})"
_SLICES = re.compile(rf"slices-{_INGEST}-[0-9a-z-]+\.parquet(\.unfinished)?")
_REJECTS = re.compile(rf"rejects-{_INGEST}\.parquet")
_EARLIER_SLICES = re.compile(r"part-\d{5}\.parquet")


def new_ingest_id() -> str:
    """A part of the names of all files that one ingest writes, and of no other's."""
    return uuid.uuid4().hex[:12]


def slice_file(ingest: str, number: int) -> str:
    """Name of a Parquet file of slices."""
    return f"slices-{ingest}-{number:05d}.parquet"


def reject_file(ingest: str) -> str:
    """Name of a Parquet file in `REJECTS`."""
    return f"rejects-{ingest}.parquet"


def is_slice_file(name: str, ingest: str | None = None) -> bool:
    """Whether an ingest (or this one) has named a file of slices so, finished or not."""
    match = _SLICES.fullmatch(name)
    return match is not None and ingest in (None, match["ingest"])


def is_reject_file(name: str, ingest: str | None = None) -> bool:
    """Whether an ingest (or this one) has named a file in `REJECTS` so."""
    match = _REJECTS.fullmatch(name)
    return match is not None and ingest in (None, match["ingest"])


def is_earlier_slice_file(name: str) -> bool:
    """Whether an earlier version has named a file of slices so; others use such names, too."""
    return _EARLIER_SLICES.fullmatch(name) is not None


@dataclass(frozen=True)
class ArchiveInfo:
    """What archive.json says."""

    format_version: int
    archive_id: str
    """Made by every ingest that does not append: archives with the same id continue each other."""
    source: str
    channels: tuple[str, ...]
    intensity_scaling: str
    patients: int
    slices: int
    annotated_slices: int
    rejects: int
    files: dict[str, int] | None = None
    """Slices of each Parquet file; None in an archive of an earlier version."""
    reject_files: dict[str, int] | None = None
    """Rows of each file in rejects/; None in an archive of an earlier version, which has one."""


def read_info(uri: str) -> ArchiveInfo:
    """archive.json of an archive.

    Raises:
        ArchiveError: it is not there, or does not say what it must.
    """
    path = store.join(uri, MANIFEST)
    try:
        values = json.loads(store.read_bytes(path))
    except FileNotFoundError:
        unfinished = any(map(is_slice_file, store.list_files(uri)))
        what = "an ingest that was not finished" if unfinished else "no archive"
        raise ArchiveError(
            f"{uri}: {what} ({MANIFEST} is not there); make one with python -m jobs.ingest"
        ) from None
    except ValueError as error:
        raise ArchiveError(f"{path}: not JSON ({error}); ingest again") from error
    if not isinstance(values, dict) or values.get("format_version") != schema.FORMAT_VERSION:
        version = values.get("format_version") if isinstance(values, dict) else None
        raise ArchiveError(
            f"{path}: format version {version}, this version reads {schema.FORMAT_VERSION}; "
            "ingest again"
        )
    missing = (
        {field.name for field in fields(ArchiveInfo)} - values.keys() - {"files", "reject_files"}
    )
    if missing:
        raise ArchiveError(f"{path}: no {', '.join(sorted(missing))}; ingest again")
    known: dict[str, Any] = {field.name: values.get(field.name) for field in fields(ArchiveInfo)}
    info = ArchiveInfo(**{**known, "channels": tuple(known["channels"])})
    for name in info.files or {}:
        if "/" in name or name.startswith("."):
            raise ArchiveError(
                f"{path}: names {name!r} among its files, which is none of this folder; "
                "ingest again"
            )
    if info.files is not None and sum(info.files.values()) != info.slices:
        raise ArchiveError(
            f"{path}: counts {info.slices} slices, and {sum(info.files.values())} in its files; "
            "ingest again"
        )
    return info
