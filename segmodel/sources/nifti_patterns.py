"""NIfTI files in a layout that the user describes with one file pattern a sequence."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase

from segmodel.core.errors import SourceError
from segmodel.sources.nifti_cases import Cases, Found, Image, sequence_of, stem


def cases_by_patterns(
    images: Sequence[str], sequences: Sequence[str], mask: str | None, root: str
) -> Cases:
    """Group files into cases: those of one folder are one case, or several told apart by `*`.

    Folders that a pattern names without a `*` belong to no patient: with `flair/*.nii.gz` and
    `t1/*.nii.gz` the files of one name are one case.

    Args:
        images: paths of all NIfTI files below the source.
        sequences: `NAME=PATTERN` for each sequence; the first pattern that fits a file wins.
        mask: pattern of the masks.
        root: the patient's name where no folder and no `*` gives one.

    Raises:
        SourceError: a sequence is not given as `NAME=PATTERN`.
    """
    wanted = [_pattern(text) for text in sequences]
    if mask is not None:
        wanted.append((None, mask))
    cases: Cases = defaultdict(Found)
    shared = _folders_of_several(images, [pattern for _, pattern in wanted])
    for path in images:
        for name, pattern in wanted:
            if not _fits(path, pattern):
                continue
            folder, _, file = path.rpartition("/")
            parts = _folders_of_patient(folder, pattern)
            if folder in shared or ("/" in pattern and not parts):
                parts.append(_starred(file, pattern.rsplit("/", 1)[-1]))
            found = cases[_key(parts or [root])]
            if name is None:
                found.add_mask(path)
            else:
                found.add(name, Image(path, f"fits {pattern}"))
            break
    return {key: found for key, found in cases.items() if found.images}


def _pattern(text: str) -> tuple[str | None, str]:
    name, separator, pattern = text.partition("=")
    if not (name and separator and pattern):
        raise SourceError(f"--sequences takes NAME=PATTERN, such as FLAIR=*flair*, got {text!r}")
    return sequence_of(name) or name, pattern


def _fits(path: str, pattern: str) -> bool:
    """Compare a pattern with the file's name or, if it has a slash, with the path below the source.

    Capital and small letters are the same.
    """
    text = path if "/" in pattern else path.rsplit("/", 1)[-1]
    return fnmatchcase(text.lower(), pattern.lower())


def _folders_of_several(images: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Folders in which several files fit a pattern: each file is of a case of its own.

    Patterns that name no folder are judged by the first: a patient may have several T1 images.
    """
    shared: set[str] = set()
    for number, pattern in enumerate(patterns):
        if number == 0 or "/" in pattern:
            folders = Counter(path.rpartition("/")[0] for path in images if _fits(path, pattern))
            shared |= {folder for folder, count in folders.items() if count > 1}
    return shared


def _folders_of_patient(folder: str, pattern: str) -> list[str]:
    """The folders of a path, without those that the pattern names in full."""
    named = [part.lower() for part in pattern.split("/")[:-1] if not re.search(r"[*?\[]", part)]
    return [part for part in folder.split("/") if part and part.lower() not in named]


def _starred(name: str, pattern: str) -> str:
    """The text that the first `*` of the pattern matches: the case's name in a folder of many."""
    expression = "".join(
        "(.*?)" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern
    )
    match = re.fullmatch(expression, name, re.IGNORECASE)
    text = match[1] if match and match.groups() else ""
    return stem(text).strip("_-. ") or stem(name)


def _key(parts: Sequence[str]) -> tuple[str, str | None]:
    """Patient and session of a path: the first folder is the patient, the others the session."""
    return (parts[0], "_".join(parts[1:]) or None)
