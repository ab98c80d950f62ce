"""The DICOM images that a series of an archive was made of, found again and compared with it."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from segmodel.export.records import SeriesInput
from segmodel.export.series_mask import SeriesGrid
from segmodel.sources.base import RejectError
from segmodel.sources.dicom_headers import read_headers
from segmodel.sources.dicom_image import ImageHeader
from segmodel.sources.dicom_stacks import Stack, stacks_of
from segmodel.sources.file_errors import reject_lasting_errors
from segmodel.storage import store

HASHED = re.compile(r"file [0-9a-f]{32}(#frame=\d+)?")
"""A slice's source in an archive made with --hash-ids."""

ImageKey = tuple[str, int | None]
"""SOP instance UID, and the frame from 0; None in a file of one image."""

_FRAME = re.compile(r"#frame=(\d+)$")
_SAME_MM = 0.01


@dataclass(frozen=True)
class SourceImages:
    """The images of a series and their headers."""

    stack: Stack
    headers: Mapping[str, Any]
    """The pydicom data set of each file of the stack, without pixels, by its URI."""


def find_images(series: SeriesInput) -> SourceImages:
    """Find the images of a series where the archive says, or among the files given with it.

    Raises:
        RejectError: they are missing, are not those that were ingested, or name another patient.
    """
    known = series.known or {}
    images = _images(series)
    stacks, _ = stacks_of(images) if images else ([], [])
    content = known["source_content"]
    stack = next((one for one in stacks if one.source_files().content == content), None)
    if stack is None:
        raise RejectError("its images are not those that were ingested, or some are missing")
    _check_positions(stack, series.found.series_grid)
    headers = {uri: _read(uri) for uri in dict.fromkeys(image.path for image in stack.images)}
    if any(str(one.get("PatientID")) != series.key[0] for one in headers.values()):
        raise RejectError(
            "its images have another patient id than the archive (--hash-ids?), and a DICOM "
            "segmentation would carry it"
        )
    return SourceImages(stack, headers)


def _slice_images(rows: pa.Table) -> dict[ImageKey, str]:
    """The image that each slice of a series is, and the URI of its file at ingest.

    Args:
        rows: of a series, with source_uri and sop_instance_uid.

    Returns:
        Nothing where slices are no images, as those of a sagittal scan.
    """
    found: dict[ImageKey, str] = {}
    names = ("source_uri", "sop_instance_uid")
    for uri, uid in zip(*(rows[name].to_pylist() for name in names), strict=True):
        if uid is None:
            return {}
        frame = _FRAME.search(uri)
        found[uid, int(frame[1]) - 1 if frame else None] = _FRAME.sub("", uri)
    return found


def _images(series: SeriesInput) -> list[ImageHeader]:
    """Headers of the images, of several copies one; their paths are URIs."""
    own = _slice_images(series.rows)
    if any(HASHED.fullmatch(uri) for uri in own.values()):
        raise RejectError("the archive does not say where its images are (--hash-ids)")
    series_uid = series.key[1].partition("_")[0]  # what follows tells stacks of one series apart
    found: dict[ImageKey, ImageHeader] = {}
    for uri in series.source_files or dict.fromkeys(own.values()):
        for image in _headers(uri):
            key = image.sop_instance_uid, image.frame
            if image.series_uid == series_uid and (not own or key in own):
                found.setdefault(key, image)
    return list(found.values())


def _headers(uri: str) -> list[ImageHeader]:
    folder, _, name = uri.rpartition("/")
    try:
        found = read_headers(folder, name)
    except FileNotFoundError:
        raise RejectError(f"{uri} is gone; if it moved, give --dicom-source") from None
    except RejectError as error:
        raise RejectError(f"{uri} {error}") from None
    return [replace(image, path=uri) for image in found] if isinstance(found, list) else []


def _check_positions(stack: Stack, series_grid: SeriesGrid) -> None:
    """Raise RejectError unless the images have the positions that they had at ingest."""
    same = stack.grid.agrees_with(series_grid.source_grid, _SAME_MM)
    if not same or stack.grid.reorientation_to_archive() != series_grid.reorientation:
        raise RejectError("its images have other positions than when they were ingested")


def _read(uri: str) -> Any:
    from pydicom import dcmread

    with reject_lasting_errors(uri), store.open_input(uri) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values in elements that are only copied
        try:
            return dcmread(file, stop_before_pixels=True)
        except OSError:
            raise
        except Exception as error:
            raise RejectError(f"{uri}: its header cannot be read: {error}") from error
