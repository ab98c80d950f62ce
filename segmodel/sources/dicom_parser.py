"""Reads some elements of a DICOM file, and where its pixels are.

Parsing is pydicom's. A file is parsed once: its pixels are read later, by their offset.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from segmodel.sources.dicom_elements import tag_of, values_of
from segmodel.sources.dicom_file import may_be_bare, open_dicom, why_too_large
from segmodel.sources.dicom_image import BrokenFile, NoImage, StoredPixels
from segmodel.sources.file_errors import reject_lasting_errors
from segmodel.storage import store

_PIXELS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_DECODER_OPTIONS = {
    "SamplesPerPixel": "samples_per_pixel",
    "PhotometricInterpretation": "photometric_interpretation",
    "NumberOfFrames": "number_of_frames",
    "Rows": "rows",
    "Columns": "columns",
    "BitsAllocated": "bits_allocated",
    "BitsStored": "bits_stored",
    "PixelRepresentation": "pixel_representation",
}
"""Names that pydicom's decoders have for elements."""

PIXEL_ELEMENTS = (
    *(*_DECODER_OPTIONS, "HighBit"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
"""What is needed to read the pixels."""

_META = {0x00020002: "MediaStorageSOPClassUID", 0x00020010: "TransferSyntaxUID"}
_UNDEFINED = 0xFFFFFFFF
"""Length of an element whose end is marked."""

Stop = Callable[[Any, str | None, int], bool]
"""Takes an element's tag, VR and length. If it returns True, reading ends before that element."""


@dataclass(frozen=True)
class ParsedHeader:
    """What was read of a file."""

    meta: Mapping[str, str]
    """UIDs of the file's meta elements, by keyword."""
    values: Mapping[str, Any]
    """Of the elements that were asked for, as far as the file has them."""
    offset: int
    """Where reading stopped, in bytes from the start of the file."""
    uid_offset: int
    """Of the value of SOPInstanceUID in the file; 0 if it was not read."""


class PixelElement:
    """The element that holds a file's pixels, as the parser meets it."""

    keyword = "PixelData"
    vr: str | None = None
    length: int | None = None
    """Bytes; None before it is met, and in a file without pixels."""

    def stop(self, tag: Any, vr: str | None, length: int) -> bool:
        """A `Stop`: there is no need to read further."""
        if tag not in _PIXELS:
            return False
        self.keyword, self.vr, self.length = _PIXELS[tag], vr, length
        return True

    def stored(self, header: ParsedHeader) -> StoredPixels:
        """What is needed to read the pixels."""
        from pydicom.uid import DeflatedExplicitVRLittleEndian
        from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

        values = header.values
        syntax = header.meta.get("TransferSyntaxUID", "")
        options = {
            option: values[name]
            for name, option in _DECODER_OPTIONS.items()
            if values.get(name) is not None
        }
        bits = values.get("BitsStored")
        if bits and values.get("HighBit") not in (None, bits - 1):
            options["bits_stored"] = values.get("BitsAllocated")  # the lowest bits are not empty
        options |= {"pixel_keyword": self.keyword, "pixel_vr": self.vr}
        options["number_of_frames"] = int(options.get("number_of_frames") or 1)
        if values.get("ExtendedOffsetTable"):
            options["extended_offsets"] = (
                values["ExtendedOffsetTable"],
                values.get("ExtendedOffsetTableLengths"),
            )
        offset = header.offset + (12 if self.vr in EXPLICIT_VR_LENGTH_32 else 8)
        known = self.length is not None and syntax != DeflatedExplicitVRLittleEndian
        return StoredPixels(
            offset=offset if known else None,
            length=-1 if self.length in (None, _UNDEFINED) else self.length,
            uid_offset=header.uid_offset,
            syntax_uid=syntax,
            options=options,
            padding=_padding(values),
        )


def _padding(values: Mapping[str, Any]) -> tuple[int, int] | None:
    """The stored values that stand for no data."""
    value = values.get("PixelPaddingValue")
    if value is None:
        return None
    limit = values.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return low, high


def read_elements(
    folder: str, path: str, names: Mapping[int, str], stop: Stop
) -> ParsedHeader | NoImage | BrokenFile:
    """Some elements of a file up to where `stop` says, or why there are none.

    Args:
        folder: URI of the source.
        path: of the file, below it.
        names: keywords of the elements, by tag.
        stop: ends the reading.

    Raises:
        RejectError: the disk does not give the file.
        OSError: the store gives no answer.
    """
    from pydicom.errors import InvalidDicomError

    uri = store.join(folder, path)
    with reject_lasting_errors(uri), open_dicom(uri) as file, quiet():
        try:
            too_large = why_too_large(file)
            if too_large:
                return BrokenFile(path, None, too_large)
            return _parse(file, names, stop)
        except InvalidDicomError:
            return NoImage(path, "not DICOM")
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged file may break the parser anywhere
            return BrokenFile(path, None, f"its header cannot be read: {error}")


def _parse(file: Any, names: Mapping[int, str], stop: Stop) -> ParsedHeader:
    """Do what pydicom's `read_partial` does in half the time; unusual files are left to it."""
    from pydicom.filereader import read_dataset, read_partial

    if file.read(132)[128:] != b"DICM":
        file.seek(0)
        return _parse_bare(file, names, stop)
    meta = _read_meta(file)
    encoding = _encodings().get(meta.get("TransferSyntaxUID", ""))
    if encoding is None or file.peek(2).startswith(b"\0\0"):  # a command of a network
        file.seek(0)
        dataset: Any = read_partial(file, stop, specific_tags=list(names))
        meta = {name: str(dataset.file_meta.get(name) or "") for name in _META.values()}
    else:
        dataset = read_dataset(file, *encoding, stop_when=stop, specific_tags=list(names))
    return _header(file, meta, dataset, names)


def _parse_bare(file: Any, names: Mapping[int, str], stop: Stop) -> ParsedHeader:
    """The same of a file without preamble, and mostly without meta elements.

    Raises:
        InvalidDicomError: it is no DICOM.
    """
    from pydicom import uid
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_partial

    if not may_be_bare(file.peek(4)):
        raise InvalidDicomError
    try:
        dataset = read_partial(file, stop, force=True, specific_tags=[*names])
        if "SOPClassUID" not in dataset:
            raise InvalidDicomError
    except (EOFError, ValueError, NotImplementedError, KeyError, AttributeError) as error:
        raise InvalidDicomError from error
    meta = {name: str(dataset.file_meta.get(name) or "") for name in _META.values()}
    if not meta["TransferSyntaxUID"]:  # such files are not compressed
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        meta["TransferSyntaxUID"] = uid.ImplicitVRLittleEndian if implicit else explicit
    return _header(file, meta, dataset, names)


def _header(
    file: Any, meta: Mapping[str, str], dataset: Any, names: Mapping[int, str]
) -> ParsedHeader:
    uid = dataset.get_item(tag_of("SOPInstanceUID"))
    return ParsedHeader(
        meta=meta,
        values=values_of(dataset, names),
        offset=file.tell(),
        uid_offset=getattr(uid, "value_tell", 0),
    )


def _read_meta(file: Any) -> dict[str, str]:
    """UIDs of the file's meta elements; afterwards the file is positioned behind them."""
    from pydicom.filereader import data_element_generator

    def stop(tag: Any, _vr: str | None, _length: int) -> bool:
        return int(tag) >> 16 != 2

    return {
        _META[int(element.tag)]: element.value.decode("ascii").rstrip("\0 ")
        for element in data_element_generator(file, False, True, stop, specific_tags=[*_META])
        if element.value
    }


@cache
def _encodings() -> dict[str, tuple[bool, bool]]:
    """Whether elements have an implicit VR and are little endian, by transfer syntax."""
    from pydicom import uid

    plain = set(uid.AllTransferSyntaxes) - {uid.DeflatedExplicitVRLittleEndian}
    return {str(syntax): (syntax.is_implicit_VR, syntax.is_little_endian) for syntax in plain}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's warnings about odd values: this package checks the values it needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
