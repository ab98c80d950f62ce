"""Which files below a folder are DICOM images, and whose; reads headers alone."""

import hashlib
import hmac
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segmodel.core.errors import SourceError
from segmodel.sources.base import ParallelMap, RejectError
from segmodel.sources.dicom_headers import read_owner
from segmodel.sources.dicom_image import BrokenFile, NoImage
from segmodel.sources.file_errors import list_source

SCAN_FILES = 256
"""Files whose headers one task reads."""


@dataclass(frozen=True)
class Scan:
    """What the headers below a source say."""

    files: Mapping[str, tuple[str, ...]]
    """Paths of each patient's images, by the id in the archive."""
    no_images: Mapping[str, int]
    """Files that are no image of a scanner, by kind."""
    broken: tuple[BrokenFile, ...]
    """Files that no patient could be found for."""
    not_listed: tuple[dict[str, Any], ...] = ()
    """Rows of `schema.REJECTS` for folders and names that could not be read."""


def scan(uri: str, hash_key: bytes | None, run: ParallelMap) -> Scan:
    """Sort all files below a folder by patient.

    Args:
        uri: the folder.
        hash_key: of the ids in the archive; None for those of the files.
        run: reads portions of the files, on a cluster say.

    Raises:
        SourceError: there is no DICOM image.
    """
    paths, not_listed = list_source(uri)
    portions = [
        (uri, paths[start : start + SCAN_FILES]) for start in range(0, len(paths), SCAN_FILES)
    ]
    files: dict[str, list[str]] = defaultdict(list)
    no_images: Counter[str] = Counter()
    broken: list[BrokenFile] = []
    for found in run(scan_files, portions):
        for patient, own in found.files.items():
            archive_id = patient if hash_key is None else hash_id(hash_key, patient)
            files[archive_id].extend(own)
        no_images.update(found.no_images)
        broken += found.broken
    broken.sort(key=lambda file: file.path)
    if not files:
        kinds = [f"{count} {kind}" for kind, count in sorted(no_images.items())]
        if broken:
            kinds.append(f"{len(broken)} broken files, the first: {broken[0].reason}")
        raise SourceError(
            f"{uri}: no DICOM image below it ({', '.join(kinds) or 'no file at all'}); is "
            "--format dicom right?"
        )
    listed = {patient: tuple(sorted(own)) for patient, own in files.items()}
    return Scan(listed, dict(no_images), tuple(broken), tuple(not_listed))


def scan_files(portion: tuple[str, Sequence[str]]) -> Scan:
    """Sort some files by the patient's id as the header has it.

    Args:
        portion: URI of the source, and paths below it.

    Raises:
        OSError: the store gives no answer.
    """
    uri, paths = portion
    files: dict[str, list[str]] = defaultdict(list)
    no_images: Counter[str] = Counter()
    broken = []
    for path in paths:
        try:
            found = read_owner(uri, path)
        except RejectError as error:
            found = BrokenFile(path, None, str(error))
        if isinstance(found, NoImage):
            no_images[found.kind] += 1
        elif isinstance(found, BrokenFile) and found.patient_id is None:
            broken.append(found)
        else:
            patient = found.patient_id if isinstance(found, BrokenFile) else found
            files[str(patient)].append(path)
    return Scan({patient: tuple(own) for patient, own in files.items()}, no_images, tuple(broken))


def hash_id(key: bytes, text: str) -> str:
    """Hash a text to 32 hexadecimal digits, from which neither text nor key can be recovered."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]
