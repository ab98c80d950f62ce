"""Values of DICOM elements as plain Python values; None where there is none."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from math import isfinite
from typing import Any

_SHORT = 256
"""Longest value, in bytes, that is cached for the other images of its series."""


@cache
def tag_of(name: str) -> int:
    """The tag of an element, by its keyword."""
    from pydicom.tag import Tag

    return int(Tag(name))


def values_of(dataset: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """Values of a data set by keyword, sequences as lists of data sets.

    Most values are equal in all images of a series: each short value is converted once.

    Args:
        dataset: pydicom's.
        names: keywords of the elements that are wanted, by tag.
    """
    encoding = dataset.original_character_set
    known = encoding if isinstance(encoding, str) else tuple(encoding)
    found = {}
    for tag in dataset.keys():  # noqa: SIM118 - a data set yields elements, converted
        name = names.get(int(tag))
        if name is None:
            continue
        raw = dataset.get_item(tag)
        if raw.is_raw and len(raw.value) <= _SHORT:
            kind, value = _converted(
                raw.tag, raw.VR, raw.value, raw.is_implicit_VR, raw.is_little_endian, known
            )
            if "or" not in kind:  # whether US or SS, another element tells
                found[name] = value
                continue
        found[name] = dataset[tag].value
    return found


@lru_cache(maxsize=4096)
def _converted(
    tag: Any,
    vr: str | None,
    value: bytes,
    implicit: bool,
    little: bool,
    encoding: str | Sequence[str],
) -> tuple[str, Any]:
    """The VR of an element and its value."""
    from pydicom.dataelem import RawDataElement, convert_raw_data_element

    raw = RawDataElement(tag, vr, len(value), value, 0, implicit, little)
    element = convert_raw_data_element(
        raw, encoding=encoding if isinstance(encoding, str) else list(encoding)
    )
    return element.VR, element.value


def text_of(value: Any) -> str:
    """A value as text, empty if there is none; as in the file, if that has backslashes."""
    return "" if value is None else "\\".join(map(str, _items(value))).strip()


def texts(value: Any) -> list[str]:
    """All texts of a value."""
    if value in (None, ""):
        return []
    return [value] if isinstance(value, str) else [str(text) for text in _items(value)]


def _items(value: Any) -> Iterator[Any]:
    return (
        iter(value) if hasattr(value, "__iter__") and not isinstance(value, str) else iter([value])
    )


def number_of(value: Any) -> float | None:
    """The first number of a value, None if there is none."""
    for item in _items(value):
        return None if item in (None, "") else float(item)
    return None


def whole_number(value: Any) -> int | None:
    """The first number of a value, without its decimals."""
    found = number_of(value)
    return None if found is None else int(found)


def numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """That many finite numbers, None if the value holds others."""
    if value in (None, ""):
        return None
    found = tuple(float(item) for item in _items(value))
    return found if len(found) == count and all(map(isfinite, found)) else None
