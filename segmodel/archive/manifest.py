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

REPORTS = "unfinished"
"""Folder of what an ingest has done so far; it goes when the ingest ends."""
CHOICES = "choices"
"""Folder of the files that say which DICOM series were taken, and why."""

_INGEST = r"(?P<ingest>[0-9a-f]{12})"
_SLICES = re.compile(rf"slices-{_INGEST}-[0-9a-z-]+\.parquet(\.unfinished)?")
_REJECTS = re.compile(rf"rejects-{_INGEST}\.parquet")
_REPORTS = re.compile(rf"{_INGEST}(-[0-9a-z-]+)?\.json")
_CHOICES = re.compile(rf"choices-{_INGEST}\.parquet")
_EARLIER_SLICES = re.compile(r"part-\d{5}\.parquet")


def new_archive_id() -> str:
    """Tells archives apart."""
    return uuid.uuid4().hex


def new_ingest_id() -> str:
    """A part of the names of all files that one ingest writes, and of no other's."""
    return uuid.uuid4().hex[:12]


def slice_file(ingest: str, part: str) -> str:
    """Name of a Parquet file of slices; `part` is of digits, small letters and `-`."""
    return f"slices-{ingest}-{part}.parquet"


def reject_file(ingest: str) -> str:
    """Name of a Parquet file in `REJECTS`."""
    return f"rejects-{ingest}.parquet"


def choice_file(ingest: str) -> str:
    """Name of a Parquet file in `CHOICES`."""
    return f"choices-{ingest}.parquet"


def request_file(ingest: str) -> str:
    """Name of the file in `REPORTS` that says what an ingest was asked for."""
    return f"{ingest}.json"


def report_file(ingest: str, part: str) -> str:
    """Name of the file in `REPORTS` that says what one portion of an ingest did."""
    return f"{ingest}-{part}.json"


def reported_part(name: str) -> tuple[str, str] | None:
    """Ingest and portion of a file in `REPORTS`; the portion of a request is empty."""
    match = _REPORTS.fullmatch(name)
    return None if match is None else (match["ingest"], (match[2] or "").removeprefix("-"))


def is_choice_file(name: str) -> bool:
    """Whether this is the name that an ingest gives to a file in `CHOICES`."""
    return _CHOICES.fullmatch(name) is not None


def is_slice_file(name: str) -> bool:
    """Whether this is the name that an ingest gives to a file of slices or series."""
    return _SLICES.fullmatch(name) is not None


def is_reject_file(name: str) -> bool:
    """Whether this is the name that an ingest gives to a file in `REJECTS`."""
    return _REJECTS.fullmatch(name) is not None


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
    choice_files: dict[str, int] | None = None
    """Rows of each file in choices/."""


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
    if not isinstance(values, dict) or values.get("format_version") not in schema.READ_VERSIONS:
        version = values.get("format_version") if isinstance(values, dict) else None
        raise ArchiveError(
            f"{path}: format version {version}, this program reads "
            f"{' and '.join(map(str, schema.READ_VERSIONS))}; ingest again"
        )
    missing = (
        {field.name for field in fields(ArchiveInfo)}
        - values.keys()
        - {"files", "reject_files", "choice_files"}
    )
    if missing:
        raise ArchiveError(f"{path}: no {', '.join(sorted(missing))}; ingest again")
    known: dict[str, Any] = {field.name: values.get(field.name) for field in fields(ArchiveInfo)}
    info = ArchiveInfo(**{**known, "channels": tuple(known["channels"])})
    for name in info.files or {}:
        if "/" in name or name.startswith("."):
            raise ArchiveError(
                f"{path}: names {name!r} among its files, which is not a file of this folder; "
                "ingest again"
            )
    if info.files is not None and sum(info.files.values()) != info.slices:
        raise ArchiveError(
            f"{path}: counts {info.slices} slices, and {sum(info.files.values())} in its files; "
            "ingest again"
        )
    return info
