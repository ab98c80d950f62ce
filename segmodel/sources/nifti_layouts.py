"""How data sets name their NIfTI files: which file is which sequence of which patient.

A layout turns the paths below a source into cases. It reads no image, only names and dataset.json.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from segmodel.core.errors import SourceError

PRE, FLAIR, POST, T2 = "pre-contrast", "FLAIR", "post-contrast", "T2"
"""The names of sequences; pre-contrast and post-contrast are T1-weighted."""

_SYNONYMS = {
    PRE: ("t1", "t1w", "t1n", "t1 pre-contrast", "t1pre"),
    POST: ("t1ce", "t1c", "t1gd", "t1wce", "ce-t1w", "t1 post-contrast", "t1post", "t1gad"),
    FLAIR: ("flair", "t2f", "t2-flair", "t2flair"),
    T2: ("t2", "t2w"),
}
SEQUENCE_OF = {word: name for name, words in _SYNONYMS.items() for word in words}
"""The sequence that a data set's word stands for; words in lower case."""

NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Image:
    """Where one sequence is found."""

    path: str
    """Below the source."""
    because: str
    """Why it is taken for that sequence, in words."""
    component: int | None = None
    """Which volume of a 4-D file; None for a file of one volume."""


@dataclass(frozen=True)
class Case:
    """The files of one study of one patient."""

    patient_id: str
    session: str | None
    """None where the layout has one study a patient."""
    images: Mapping[str, Image]
    """By the name of the sequence."""
    mask: str | None = None
    """Path below the source."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """What a layout makes of a source."""

    layout: str
    cases: list[Case]
    """Sorted by patient and session."""
    unused: int
    """NIfTI files that belong to no case."""


@dataclass
class _Found:
    """A case under construction."""

    images: dict[str, Image] = field(default_factory=dict)
    mask: str | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, sequence: str, image: Image) -> None:
        if sequence in self.images:
            self.notes.append(f"{image.path} is a second {sequence}: not used")
        else:
            self.images[sequence] = image


Cases = dict[tuple[str, str | None], _Found]
ReadText = Callable[[str], bytes]


def find_cases(
    paths: Sequence[str],
    read: ReadText,
    layout: str = "auto",
    sequences: Sequence[str] = (),
    mask: str | None = None,
    root: str = "patient",
) -> Listing:
    """Group the NIfTI files below a source into cases.

    Args:
        paths: of all files below the source, relative to it.
        read: gives the content of one of them.
        layout: `auto`, or one of `LAYOUTS`.
        sequences: `NAME=PATTERN` of the user's own layout; wins over `layout`.
        mask: pattern of the masks, with `sequences`.
        root: name of the source's own folder: the patient, if it holds one patient's files itself.

    Raises:
        SourceError: no layout fits, or none of its cases has a file.
    """
    images = sorted(path for path in paths if path.lower().endswith(NIFTI))
    if not images:
        raise SourceError("no .nii or .nii.gz file below the source")
    if sequences:
        name, cases = "patterns", _patterns(images, sequences, mask, root)
    elif layout == "auto":
        name, cases = _recognise(paths, images, read)
    else:
        name, cases = layout, LAYOUTS[layout](images, _dataset(paths, read))
    if not cases:
        raise SourceError(
            f"none of the {len(images)} NIfTI files fits the layout {name}; the first is {images[0]!r}. "
            'Name the sequences yourself: --sequences "FLAIR=*flair*" "pre-contrast=*_t1.nii.gz"'
        )
    used = {image.path for found in cases.values() for image in found.images.values()}
    used |= {found.mask for found in cases.values() if found.mask}
    listed = [
        Case(patient, session, found.images, found.mask, tuple(found.notes))
        for (patient, session), found in sorted(
            cases.items(), key=lambda item: (item[0][0], item[0][1] or "")
        )
    ]
    return Listing(name, listed, len(set(images) - used))


def _recognise(paths: Sequence[str], images: Sequence[str], read: ReadText) -> tuple[str, Cases]:
    dataset = _dataset(paths, read)
    for name in ("decathlon", "nnunet", "bids", "brats"):
        cases = LAYOUTS[name](images, dataset)
        if cases:
            return name, cases
    raise SourceError(
        f"the layout of {len(images)} NIfTI files is none of {', '.join(LAYOUTS)}; the first is {images[0]!r}. "
        'Name the sequences: --sequences "FLAIR=*flair*" "pre-contrast=*_t1.nii.gz"'
    )


def _dataset(paths: Sequence[str], read: ReadText) -> dict[str, Any]:
    """dataset.json of the source with the path of its folder under `folder`; {} without one."""
    found = sorted(
        (path for path in paths if path.rsplit("/", 1)[-1] == "dataset.json"),
        key=lambda p: p.count("/"),
    )
    if not found:
        return {}
    try:
        values = json.loads(read(found[0]))
    except ValueError as error:
        raise SourceError(f"{found[0]}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise SourceError(f"{found[0]}: expected an object with the names of the channels")
    return {**values, "folder": found[0].removesuffix("dataset.json")}


def _channel_names(dataset: Mapping[str, Any]) -> dict[int, str]:
    """Number of each channel, and the sequence that it shows; other channels are left out."""
    named = dataset.get("channel_names") or dataset.get("modality") or {}
    if not isinstance(named, dict):
        return {}
    return {
        int(number): SEQUENCE_OF[str(word).lower()]
        for number, word in named.items()
        if str(number).isdigit() and str(word).lower() in SEQUENCE_OF
    }


def _stem(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    return re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)


_BRATS = re.compile(
    r"^(?P<case>.+?)[-_](?P<word>flair|t1ce|t1gd|t1c|t1n|t1|t2f|t2w|t2|seg)$", re.IGNORECASE
)
_BRATS_SESSION = re.compile(r"^(?P<patient>BraTS-[A-Za-z]+-\d+)-(?P<session>\d+)$")


def _brats(images: Sequence[str], dataset: Mapping[str, Any]) -> Cases:
    """`NAME_flair.nii.gz` or `NAME-t2f.nii.gz`; in the newer names the last number is the session."""
    cases: Cases = defaultdict(_Found)
    for path in images:
        match = _BRATS.match(_stem(path))
        if match is None:
            continue
        name = match["case"]
        dated = _BRATS_SESSION.match(name)
        key = (dated["patient"], dated["session"]) if dated else (name, None)
        word = match["word"].lower()
        if word == "seg":
            cases[key].mask = cases[key].mask or path
        else:
            cases[key].add(SEQUENCE_OF[word], Image(path, f"named ..{match['word']}"))
    return {key: found for key, found in cases.items() if found.images}


def _decathlon(images: Sequence[str], dataset: Mapping[str, Any]) -> Cases:
    """imagesTr/NAME.nii.gz with the sequences along the fourth axis, labelsTr/NAME.nii.gz."""
    names, available = _channel_names(dataset), set(images)
    cases: Cases = defaultdict(_Found)
    for folder, path in _below(images, dataset, ("imagesTr", "imagesTs")):
        if re.search(r"_\d{4}$", _stem(path)):
            return {}  # one file a channel: nnU-Net's
        for number, sequence in names.items():
            component = number if len(dataset.get("modality") or names) > 1 else None
            because = f"number {number} along the fourth axis, by dataset.json"
            cases[_stem(path), None].add(sequence, Image(path, because, component))
        mask = path.replace(folder, folder.replace("images", "labels"), 1)
        if mask in available:
            cases[_stem(path), None].mask = mask
    return cases


def _nnunet(images: Sequence[str], dataset: Mapping[str, Any]) -> Cases:
    """imagesTr/NAME_0000.nii.gz, one file a channel of dataset.json, labelsTr/NAME.nii.gz."""
    names, available = _channel_names(dataset), set(images)
    cases: Cases = defaultdict(_Found)
    for folder, path in _below(images, dataset, ("imagesTr", "imagesTs")):
        match = re.match(r"^(?P<case>.+)_(?P<number>\d{4})$", _stem(path))
        if match is None or int(match["number"]) not in names:
            continue
        found = cases[match["case"], None]
        because = f"channel {match['number']}, by dataset.json"
        found.add(names[int(match["number"])], Image(path, because))
        ending = path[len(path) - len(path.rsplit("/", 1)[-1]) + len(_stem(path)) :]
        mask = f"{dataset['folder']}{folder.replace('images', 'labels')}/{match['case']}{ending}"
        if mask in available:
            found.mask = mask
    return cases


def _below(
    images: Sequence[str], dataset: Mapping[str, Any], folders: Sequence[str]
) -> list[tuple[str, str]]:
    """Images in some folders beside dataset.json, each after the folder's name."""
    if not dataset:
        return []
    return [
        (folder, path)
        for folder in folders
        for path in images
        if path.startswith(f"{dataset['folder']}{folder}/")
    ]


_BIDS = re.compile(
    r"(?:^|/)(?P<patient>sub-[A-Za-z0-9]+)/(?:(?P<session>ses-[A-Za-z0-9]+)/)?anat/"
    r"(?P<name>[^/]+)_(?P<suffix>FLAIR|T1w|T2w)\.nii(\.gz)?$"
)
_BIDS_MASK = re.compile(
    r"(?:^|/)derivatives/(?:.+/)?(?P<patient>sub-[A-Za-z0-9]+)/(?:(?P<session>ses-[A-Za-z0-9]+)/)?anat/"
    r"[^/]*(?:lesion|tumou?r|seg|roi)[^/]*_(?:mask|dseg|roi)\.nii(\.gz)?$",
    re.IGNORECASE,
)


def _bids(images: Sequence[str], dataset: Mapping[str, Any]) -> Cases:
    """`sub-*/[ses-*/]anat/*_FLAIR.nii.gz`, T1w before and, with `ce-`, after contrast; masks in derivatives/."""
    cases: Cases = defaultdict(_Found)
    for path in images:
        match = _BIDS.search(path)
        if match is None or "derivatives/" in path:
            continue
        contrast = re.search(r"_ce-[A-Za-z0-9]+", match["name"]) is not None
        sequence = {"FLAIR": FLAIR, "T2w": T2, "T1w": POST if contrast else PRE}[match["suffix"]]
        because = f"suffix {match['suffix']}" + (" with the entity ce" if contrast else "")
        cases[match["patient"], match["session"]].add(sequence, Image(path, because))
    for path in images:
        masked = _BIDS_MASK.search(path)
        if masked and (key := (masked["patient"], masked["session"])) in cases:
            cases[key].mask = cases[key].mask or path
    return cases


LAYOUTS: dict[str, Callable[[Sequence[str], Mapping[str, Any]], Cases]] = {
    "brats": _brats,
    "decathlon": _decathlon,
    "nnunet": _nnunet,
    "bids": _bids,
}
"""Of data sets, by their names for --layout."""


def _patterns(
    images: Sequence[str], sequences: Sequence[str], mask: str | None, root: str
) -> Cases:
    """A layout that the user names: files of one folder are one case, or several told apart by `*`."""
    wanted = [_pattern(text) for text in sequences]
    if mask is not None:
        wanted.append((None, mask))
    cases: Cases = defaultdict(_Found)
    shared = _folders_of_several(images, wanted[0][1])
    for path in images:
        for name, pattern in wanted:
            if not _fits(path, pattern):
                continue
            folder, _, file = path.rpartition("/")
            parts = [part for part in folder.split("/") if part]
            if folder in shared:
                parts.append(_starred(file, pattern.rsplit("/", 1)[-1]))
            found = cases[_key(parts or [root])]
            if name is None:
                found.mask = found.mask or path
            else:
                found.add(name, Image(path, f"fits {pattern}"))
            break
    return {key: found for key, found in cases.items() if found.images}


def _pattern(text: str) -> tuple[str | None, str]:
    name, separator, pattern = text.partition("=")
    if not (name and separator and pattern):
        raise SourceError(f"--sequences takes NAME=PATTERN, such as FLAIR=*flair*, got {text!r}")
    return SEQUENCE_OF.get(name.lower(), name), pattern


def _fits(path: str, pattern: str) -> bool:
    """Compare a pattern with the file's name or, if it has a slash, with the path below the source.

    Capital and small letters are the same.
    """
    text = path if "/" in pattern else path.rsplit("/", 1)[-1]
    return fnmatchcase(text.lower(), pattern.lower())


def _folders_of_several(images: Sequence[str], pattern: str) -> set[str]:
    """Folders in which several files fit the first sequence's pattern: each is a case of its own."""
    folders = Counter(path.rpartition("/")[0] for path in images if _fits(path, pattern))
    return {folder for folder, count in folders.items() if count > 1}


def _starred(name: str, pattern: str) -> str:
    """What the first `*` of the pattern stands for in the name, the case's name in a folder of many."""
    expression = "".join(
        "(.*?)" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern
    )
    match = re.fullmatch(expression, name, re.IGNORECASE)
    text = match[1] if match and match.groups() else ""
    return _stem(text).strip("_-. ") or _stem(name)


def _key(parts: Sequence[str]) -> tuple[str, str | None]:
    """Patient and session of a path: the first folder is the patient, those below it the session."""
    return (parts[0], "_".join(parts[1:]) or None)
