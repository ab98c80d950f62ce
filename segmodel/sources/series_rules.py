"""Decides which DICOM series of a study is which sequence, by rules in YAML."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from segmodel.core.errors import ConfigError
from segmodel.settings import yaml_file
from segmodel.sources.dicom_image import ImageHeader
from segmodel.sources.dicom_stacks import Stack
from segmodel.storage import store

_RANGES = ("echo_time_ms", "repetition_time_ms", "inversion_time_ms")
_PATTERNS = ("description", "not_description", "sequence")


@dataclass(frozen=True)
class Rule:
    """Conditions on a series; all that are given must hold."""

    because: str
    description: re.Pattern[str] | None = None
    not_description: re.Pattern[str] | None = None
    sequence: re.Pattern[str] | None = None
    image_type: frozenset[str] = frozenset()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    contrast: bool | None = None

    def fits(self, image: ImageHeader, description: str) -> bool:
        """Whether a series fits, by the header of one of its images and by what it is called."""
        if self.description and not self.description.search(description):
            return False
        if self.not_description and self.not_description.search(description):
            return False
        if self.sequence and not self.sequence.search(image.sequence.replace("_", " ")):
            return False
        if self.image_type and not self.image_type.intersection(image.image_type):
            return False
        if self.contrast is not None and self.contrast != image.contrast:
            return False
        for name, (least, most) in self.ranges.items():
            value = getattr(image, name.removesuffix("_ms"))
            if value is None or not least <= value <= most:
                return False
        return True


@dataclass(frozen=True)
class SeriesRules:
    """The rules of one file."""

    leave_out: tuple[Rule, ...]
    sequences: Mapping[str, tuple[Rule, ...]]

    def description_of(self, image: ImageHeader) -> str:
        """What a series is called.

        That is its own description if a rule for a sequence knows it. Otherwise the protocol's
        name is added, which may name the whole examination, such as `BRAIN W/WO CONTRAST`.
        """
        # \b treats an underscore as a letter
        own, protocol = (text.replace("_", " ") for text in (image.description, image.protocol))
        rules = [rule for alternatives in self.sequences.values() for rule in alternatives]
        if any(rule.description and rule.description.search(own) for rule in rules):
            return own
        return own if protocol in own else f"{own} {protocol}"

    def why_left_out(self, image: ImageHeader) -> str | None:
        """Why a series with such an image is left out; None if it is not."""
        if image.modality != "MR":
            return f"modality {image.modality or 'unknown'}, not MR"
        if image.colour:
            return "a colour image"
        if "MOSAIC" in image.image_type:  # under any rules: its slices have no positions
            return "Siemens mosaic (many slices in one image)"
        called = self.description_of(image)
        return next((rule.because for rule in self.leave_out if rule.fits(image, called)), None)


@dataclass(frozen=True)
class Verdict:
    """What became of one stack of a study."""

    stack: Stack
    sequence: str | None
    """The sequence that it is by the rules; None if no rule fits."""
    chosen: bool
    """Whether it is the one that is used for that sequence."""
    because: str


def load_rules(uri: str | None) -> SeriesRules:
    """The rules of a YAML file, or those that come with the program.

    Raises:
        ConfigError: the file is no YAML in UTF-8, has a key twice or an unknown condition.
        OSError: it cannot be read.
    """
    shipped = resources.files(__package__).joinpath("series_rules.yaml")
    content = shipped.read_bytes() if uri is None else store.read_bytes(uri)
    name = uri or "series_rules.yaml"
    try:
        values = yaml_file.load(yaml_file.decode(content, name))
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("sequences"), dict):
        raise ConfigError(
            f"{name}: expected the keys leave_out (rules) and sequences (name: rules)"
        )
    unknown = values.keys() - {"leave_out", "sequences"}
    if unknown:
        raise ConfigError(f"{name}: unknown key {min(map(str, unknown))!r}")
    return SeriesRules(
        tuple(_rule(name, rule) for rule in values.get("leave_out") or []),
        {
            str(sequence): tuple(_rule(name, rule) for rule in rules)
            for sequence, rules in values["sequences"].items()
        },
    )


def _rule(file: str, values: Any) -> Rule:
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: a rule is a list of conditions, got {values!r}")
    known = {"because", "image_type", "contrast", *_RANGES, *_PATTERNS}
    unknown = values.keys() - known
    if unknown:
        raise ConfigError(
            f"{file}: unknown condition {min(map(str, unknown))!r}; there are "
            f"{', '.join(sorted(known))}"
        )
    if not values.keys() - {"because"}:
        raise ConfigError(f"{file}: a rule without conditions would fit every series")
    try:
        patterns = {
            name: re.compile(str(values[name]), re.IGNORECASE)
            for name in _PATTERNS
            if name in values
        }
        ranges = {
            name: (float(values[name][0]), float(values[name][1]))
            for name in _RANGES
            if name in values
        }
    except (re.error, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{file}: {values!r}: {error}") from error
    shown = ", ".join(f"{name} {value}" for name, value in values.items() if name != "because")
    return Rule(
        because=str(values.get("because") or shown),
        image_type=frozenset(str(word).upper() for word in values.get("image_type") or ()),
        ranges=ranges,
        contrast=values.get("contrast"),
        **patterns,
    )


def choose(
    stacks: Sequence[Stack], rules: SeriesRules, base_name: str | None = None
) -> list[Verdict]:
    """Decide which stack of a study is used for each sequence.

    Args:
        stacks: of one study, none of which `why_left_out` excludes.
        rules: for the sequences.
        base_name: sequence that gives the grid; for the others a stack in its frame of reference is
            preferred, because only such a one can be laid over it.

    Returns:
        A verdict for each stack, in their order.
    """
    found = [_classify(stack, rules) for stack in stacks]
    candidates: dict[str, list[int]] = defaultdict(list)
    for number, (sequence, _) in enumerate(found):
        if sequence is not None:
            candidates[sequence].append(number)
    base = min(
        (stacks[n] for n in candidates.get(base_name or "", [])), key=_preference, default=None
    )
    best = {
        sequence: min(
            numbers, key=lambda n: (_lies_elsewhere(stacks[n], base), _preference(stacks[n]))
        )
        for sequence, numbers in candidates.items()
    }
    verdicts = []
    for number, (sequence, because) in enumerate(found):
        chosen = sequence is not None and best[sequence] == number
        if sequence is not None and not chosen:
            because = f"{because}; {_named(stacks[best[sequence]])} is preferred"
        verdicts.append(Verdict(stacks[number], sequence, chosen, because))
    return verdicts


def _lies_elsewhere(stack: Stack, base: Stack | None) -> bool:
    return base is not None and stack.first.frame_of_reference != base.first.frame_of_reference


def _classify(stack: Stack, rules: SeriesRules) -> tuple[str | None, str]:
    called = rules.description_of(stack.first)
    for sequence, alternatives in rules.sequences.items():
        for rule in alternatives:
            if rule.fits(stack.first, called):
                return sequence, rule.because
    return None, "no rule fits"


def _preference(stack: Stack) -> tuple[object, ...]:
    """Sort key: the best stack comes first."""
    image = stack.first
    _, row_mm, column_mm = stack.grid.spacing_mm
    return (
        stack.grid.plane(0) != "axial",
        stack.no_volume_reason is not None,
        "ORIGINAL" not in image.image_type,
        -len(stack.images),
        round(row_mm * column_mm, 3),
        image.series_number if image.series_number is not None else 10**9,
        image.series_uid,
        stack.part,
    )


def _named(stack: Stack) -> str:
    image = stack.first
    number = "" if image.series_number is None else f"series {image.series_number}, "
    return f"{number}{image.description or image.series_uid}{' ' if stack.part else ''}{stack.part}"
