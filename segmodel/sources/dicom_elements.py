"""Values of DICOM elements as plain Python values; None where there is none."""

from collections.abc import Iterator
from functools import cache
from typing import Any


def first_item(place: Any, name: str) -> Any:
    """The first item of a sequence."""
    sequence = value_of(place, name)
    return sequence[0] if sequence else None


def value_of(place: Any, name: str) -> Any:
    """The value of an element, None if it is not there; by its tag, as names are slow."""
    tag = tag_of(name)
    return place[tag].value if tag in place else None


@cache
def tag_of(name: str) -> Any:
    """Pydicom's tag of an element."""
    from pydicom.tag import Tag

    return Tag(name)


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
    """The first number of a value, without what stands behind its point."""
    found = number_of(value)
    return None if found is None else int(found)


def numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """That many numbers, None if the value holds others."""
    if value in (None, ""):
        return None
    found = tuple(float(item) for item in _items(value))
    return found if len(found) == count else None
