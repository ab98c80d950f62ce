"""How data sets name their NIfTI files: which file is which sequence of which patient.

A layout turns the paths below a source into cases. It reads no image, only names and dataset.json.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segmodel.core.errors import SourceError
from segmodel.sources.nifti_cases import (
    FLAIR,
    POST,
    PRE,
    T2,
    Case,
    Cases,
    Found,
    Image,
    Listing,
    sequence_of,
    stem,
)
from segmodel.sources.nifti_patterns import cases_by_patterns

NIFTI = (".nii", ".nii.gz")


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
    images = sorted(path for path in paths if path.lower().endswith(NIFTI) and not _hidden(path))
    if not images:
        pairs = any(path.lower().endswith((".hdr", ".img", ".img.gz")) for path in paths)
        hint = "convert pairs of .hdr and .img to .nii.gz" if pairs else "is --format nifti right?"
        raise SourceError(f"no .nii or .nii.gz file below the source; {hint}")
    if sequences:
        name, cases = "patterns", cases_by_patterns(images, sequences, mask, root)
    elif layout == "auto":
        name, cases = _recognise(paths, images, read)
    else:
        name, cases = layout, LAYOUTS[layout](images, _dataset(paths, read))
    if not cases:
        raise SourceError(
            f"none of the {len(images)} NIfTI files fits the layout {name}; the first is "
            f"{images[0]!r}. "
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
    return Listing(name, listed, [path for path in images if path not in used])


def _hidden(path: str) -> bool:
    """Whether a file is metadata of macOS (`._NAME`) or git-annex and not an image."""
    return any(part.startswith(".") for part in path.split("/"))


def _recognise(paths: Sequence[str], images: Sequence[str], read: ReadText) -> tuple[str, Cases]:
    dataset = _dataset(paths, read)
    for name in ("decathlon", "nnunet", "bids", "brats"):
        cases = LAYOUTS[name](images, dataset)
        if cases:
            return name, cases
    words = ", ".join(_words_of_channels(dataset).values())
    if words and not _channel_names(dataset):
        raise SourceError(
            f"dataset.json calls its channels {words}, which are not known sequences. "
            'Name them: --sequences "FLAIR=imagesTr/*_0000.nii.gz" --mask "labelsTr/*.nii.gz"'
        )
    raise SourceError(
        f"the layout of {len(images)} NIfTI files is none of {', '.join(LAYOUTS)}; the first is "
        f"{images[0]!r}. "
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


def _words_of_channels(dataset: Mapping[str, Any]) -> dict[int, str]:
    """Number of each channel, and what dataset.json calls it."""
    named = dataset.get("channel_names") or dataset.get("modality") or {}
    if isinstance(named, list):
        named = dict(enumerate(named))
    if not isinstance(named, dict):
        return {}
    return {int(number): str(word) for number, word in named.items() if str(number).isdigit()}


def _channel_names(dataset: Mapping[str, Any]) -> dict[int, str]:
    """Number of each channel, and the sequence that it shows; other channels are left out."""
    words = _words_of_channels(dataset)
    return {number: name for number, word in words.items() if (name := sequence_of(word))}


_BRATS = re.compile(
    r"^(?P<case>.+?)[-_](?P<word>flair|t1ce|t1gd|t1c|t1n|t1|t2f|t2w|t2"
    r"|segm?|(?:tumou?r[-_])?segmentation)$",
    re.IGNORECASE,
)
_BRATS_SESSION = re.compile(r"^(?P<patient>BraTS-[A-Za-z-]+-\d+)-(?P<session>\d+)$", re.IGNORECASE)


def _brats(images: Sequence[str], dataset: Mapping[str, Any]) -> Cases:
    """`NAME_flair.nii.gz` or `NAME-t2f.nii.gz`; in newer names the last number is the session."""
    cases: Cases = defaultdict(Found)
    for path in images:
        match = _BRATS.match(stem(path))
        if match is None:
            continue
        name = match["case"]
        dated = _BRATS_SESSION.match(name)
        key = (dated["patient"], dated["session"]) if dated else (name, None)
        sequence = sequence_of(match["word"])
        if sequence is None:
            cases[key].add_mask(path)
        else:
            cases[key].add(sequence, Image(path, f"named ..{match['word']}"))
    return {key: found for key, found in cases.items() if found.images}


def _decathlon(images: Sequence[str], dataset: Mapping[str, Any]) -> Cases:
    """imagesTr/NAME.nii.gz with the sequences along the fourth axis, labelsTr/NAME.nii.gz."""
    names, available = _channel_names(dataset), set(images)
    cases: Cases = defaultdict(Found)
    for folder, path in _below(images, dataset, ("imagesTr", "imagesTs")):
        if re.search(r"_\d{4}$", stem(path)):
            return {}  # one file a channel: nnU-Net's
        for number, sequence in names.items():
            component = number if len(dataset.get("modality") or names) > 1 else None
            because = f"number {number} along the fourth axis, by dataset.json"
            cases[stem(path), None].add(sequence, Image(path, because, component))
        mask = _label(dataset, folder, stem(path), available)
        if mask:
            cases[stem(path), None].add_mask(mask)
    return {key: found for key, found in cases.items() if found.images}


def _nnunet(images: Sequence[str], dataset: Mapping[str, Any]) -> Cases:
    """imagesTr/NAME_0000.nii.gz, one file a channel of dataset.json, labelsTr/NAME.nii.gz."""
    names, available = _channel_names(dataset), set(images)
    cases: Cases = defaultdict(Found)
    for folder, path in _below(images, dataset, ("imagesTr", "imagesTs")):
        match = re.match(r"^(?P<case>.+)_(?P<number>\d{4})$", stem(path))
        if match is None or int(match["number"]) not in names:
            continue
        found = cases[match["case"], None]
        because = f"channel {match['number']}, by dataset.json"
        found.add(names[int(match["number"])], Image(path, because))
        mask = _label(dataset, folder, match["case"], available)
        if mask and found.mask is None:
            found.add_mask(mask)
    return cases


def _label(dataset: Mapping[str, Any], folder: str, name: str, available: set[str]) -> str | None:
    """Path of a case's label beside dataset.json, compressed or not."""
    labels = f"{dataset['folder']}{folder.replace('images', 'labels')}/{name}"
    return next((labels + ending for ending in NIFTI[::-1] if labels + ending in available), None)


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


_BIDS_FOLDERS = r"(?:^|/)(?P<patient>sub-[^/]+)/(?:(?P<session>ses-[^/]+)/)?anat/"
_BIDS = re.compile(
    _BIDS_FOLDERS + r"(?P<name>[^/]+)_(?P<suffix>FLAIR|T1w|T2w)\.nii(\.gz)?$", re.IGNORECASE
)
_BIDS_MASK = re.compile(
    r"(?:^|/)(?P<patient>sub-[^/]+)/(?:(?P<session>ses-[^/]+)/)?(?:anat/)?"
    r"(?:sub-[^_/]+_)?+(?:ses-[^_/]+_)?+"  # ids may hold such words, too
    r"(?![^/]*_(?:FLAIR|[A-Z0-9]+w|[A-Z0-9]+map)\.nii)"  # images of the tumor are no masks
    r"[^/]*(?:lesion|tumou?r|glioma|(?<![a-z])roi(?![a-z]))[^/]*\.nii(\.gz)?$",
    re.IGNORECASE,
)
"""Tissue segmentations and brain masks are named otherwise."""


def _bids(images: Sequence[str], dataset: Mapping[str, Any]) -> Cases:
    """`sub-*/[ses-*/]anat/*_FLAIR.nii.gz`, T1w (contrast: `ce-`); masks, mostly in derivatives/."""
    cases: Cases = defaultdict(Found)
    for path in images:
        match = _BIDS.search(path)
        if match is None or re.search(r"(^|/)derivatives/", path, re.IGNORECASE):
            continue
        contrast = re.search(r"_ce-[A-Za-z0-9]+", match["name"], re.IGNORECASE) is not None
        t1 = POST if contrast else PRE
        sequence = {"flair": FLAIR, "t2w": T2, "t1w": t1}[match["suffix"].lower()]
        because = f"suffix {match['suffix']}" + (" with the entity ce" if contrast else "")
        cases[match["patient"], match["session"]].add(sequence, Image(path, because))
    for path in sorted(images, key=lambda path: "_space-mni" in path.lower()):  # those at last
        masked = _BIDS_MASK.search(path)
        if masked and (key := (masked["patient"], masked["session"])) in cases:
            cases[key].add_mask(path)
    return cases


LAYOUTS: dict[str, Callable[[Sequence[str], Mapping[str, Any]], Cases]] = {
    "brats": _brats,
    "decathlon": _decathlon,
    "nnunet": _nnunet,
    "bids": _bids,
}
"""Of data sets, by their names for --layout."""
