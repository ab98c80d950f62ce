"""File names made of ids: safe in every file system, and different for different series."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

SeriesKey = tuple[str, str]
"""Patient id and series id."""

LONGEST = 100
"""Characters of a name without its hash: file systems take 255 bytes, and an ending follows."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_HASHED = re.compile(r"-[0-9a-f]{10}$")


def file_stems(series: Sequence[SeriesKey]) -> dict[SeriesKey, str]:
    """The beginning of the file names of each series.

    It is the patient id, followed by the series id where that is another. If this is not safe as a
    file name, or two series would share it, a hash of both ids follows.

    Args:
        series: all series of an archive, so that a name does not depend on which are exported.
    """
    readable = {key: _readable(key) for key in series}
    plain = {key: _plain(text) for key, text in readable.items()}
    # Some file systems do not tell small letters from capitals.
    sharing = Counter(text.lower() for text in plain.values())
    return {
        key: text
        if text == readable[key] and sharing[text.lower()] == 1 and not _HASHED.search(text)
        else f"{text}-{_hash(key)}"
        for key, text in plain.items()
    }


def _readable(key: SeriesKey) -> str:
    patient, series = key
    return patient if patient == series else f"{patient}_{series}"


def distinct(names: Sequence[str]) -> list[str]:
    """Safe names for channels; one that another channel has, too, gets its number."""
    plain = [_plain(name) for name in names]
    sharing = Counter(name.lower() for name in plain)
    return [
        name if sharing[name.lower()] == 1 else f"{name}-{number}"
        for number, name in enumerate(plain, 1)
    ]


def _plain(text: str) -> str:
    return _UNSAFE.sub("-", text)[:LONGEST].strip(".-") or "unnamed"


def _hash(key: SeriesKey) -> str:
    return hashlib.sha256("\0".join(key).encode(errors="surrogatepass")).hexdigest()[:10]
