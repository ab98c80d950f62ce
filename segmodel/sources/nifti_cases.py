"""The NIfTI files of a study, and the words that data sets use for sequences."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

PRE, FLAIR, POST, T2 = "pre-contrast", "FLAIR", "post-contrast", "T2"
"""The names of sequences; pre-contrast and post-contrast are T1-weighted."""

_SYNONYMS = {
    PRE: ("t1", "t1w", "t1n", "t1pre", "t1precontrast", "t1native", "t1weighted", "precontrast"),
    POST: (
        *("t1ce", "t1c", "t1gd", "t1gad", "t1post", "t1postcontrast", "t1contrast", "t1wce"),
        *("t1wc", "t1wgd", "cet1", "cet1w", "postcontrast"),
    ),
    FLAIR: ("flair", "t2f", "t2flair", "t2wflair", "flairt2"),
    T2: ("t2", "t2w", "t2weighted"),
}
_SEQUENCE_OF = {word: name for name, words in _SYNONYMS.items() for word in words}


def sequence_of(word: str) -> str | None:
    """The sequence that a data set's word stands for; only its letters and digits count."""
    return _SEQUENCE_OF.get(re.sub(r"[^a-z0-9]", "", word.lower()))


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
    """The cases that a layout finds in a source."""

    layout: str
    cases: list[Case]
    """Sorted by patient and session."""
    unused: list[str]
    """NIfTI files that belong to no case."""


@dataclass
class Found:
    """A case under construction."""

    images: dict[str, Image] = field(default_factory=dict)
    mask: str | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, sequence: str, image: Image) -> None:
        """Add an image, unless the case has one of that sequence."""
        if sequence in self.images:
            self.notes.append(f"{image.path} is a second {sequence}: not used")
        else:
            self.images[sequence] = image

    def add_mask(self, path: str) -> None:
        """Add a mask, unless the case has one."""
        if self.mask is not None:
            self.notes.append(f"{path} is a second mask: not used")
        else:
            self.mask = path


Cases = dict[tuple[str, str | None], Found]
"""By patient and session."""


def stem(path: str) -> str:
    """Name of a NIfTI file without its ending."""
    name = path.rsplit("/", 1)[-1]
    return re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)
