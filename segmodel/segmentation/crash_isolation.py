"""Which slices kill their worker: what is known of each shard's deaths, and how it is cut up until they are found.

A process that runs out of memory or meets a segmentation fault cannot say what it was doing. So a worker says it beforehand:
from a shard's `CAREFUL_FROM`-th attempt on, it names every part before it takes it, to a record that outlives it. A part in
which a worker died is halved at the next attempt, until it is one slice; what has cost `DEATHS` workers alone is given up.
"""

from dataclasses import dataclass, field

CAREFUL_FROM = 3
"""Attempt from which on the parts of a shard are named: a node that goes takes innocent shards with it."""
DEATHS = 3
"""Workers that may die over one slice, or over the reading of one row group, before it is given up."""
SHARD_DEATHS = 100
"""Workers that may die over a shard before parts that killed one are given up as they are: enough for ten slices far apart."""


@dataclass(frozen=True)
class Part:
    """Slices of one row group that are predicted together; without slices, the reading of the row group."""

    row_group: int
    first: int = 0
    stop: int = 0

    @property
    def one(self) -> bool:
        """Whether it cannot be halved."""
        return self.stop - self.first <= 1

    def lies_in(self, other: "Part") -> bool:
        """Whether it holds some of the other's slices, but not all."""
        return (
            self != other
            and self.row_group == other.row_group
            and other.first <= self.first < self.stop <= other.stop
        )


@dataclass
class Attempt:
    """What a worker learns of a shard when it begins with it."""

    number: int = 0
    """Of this attempt, from 1."""
    deaths: list[Part] = field(default_factory=list)
    """The parts in which workers died."""

    @property
    def careful(self) -> bool:
        """Whether the worker must name what it takes."""
        return self.number >= CAREFUL_FROM

    def given_up(self, part: Part) -> str | None:
        """Why one of `parts`, or the reading of a row group, is not to be taken any more; None if it is."""
        deaths = self.deaths.count(part)
        if deaths < (1 if self._search_is_over else DEATHS):
            return None
        if part.one:
            what = "segmented" if part.stop else "read"
            return f"killed {deaths} worker{'s' if deaths > 1 else ''} while it was {what}; their end is in the logs of Ray"
        return (
            f"is one of {part.stop - part.first} slices that together killed a worker; after {SHARD_DEATHS} deaths over one "
            "shard they were not taken apart"
        )

    def parts(self, part: Part) -> list[Part]:
        """`part`, or its halves where a worker died in it, and so on."""
        if part not in self.deaths or part.one:
            return [part]
        if self._search_is_over and not any(death.lies_in(part) for death in self.deaths):
            return [part]
        middle = (part.first + part.stop) // 2
        halves = Part(part.row_group, part.first, middle), Part(part.row_group, middle, part.stop)
        return [each for half in halves for each in self.parts(half)]

    @property
    def _search_is_over(self) -> bool:
        return len(self.deaths) >= SHARD_DEATHS


class CrashRecord:
    """What workers said of the shards that are under way; it lives in a process of its own, beside the driver."""

    def __init__(self) -> None:
        self._attempts: dict[str, Attempt] = {}
        self._taken: dict[str, Part] = {}
        self._starts = 0

    def start(self) -> int:
        """A worker starts; returns how many have since slices were last segmented, as far as is known."""
        self._starts += 1
        return self._starts

    def begin(self, shard: str) -> Attempt:
        """A worker begins with a shard; the one that had it before has died."""
        attempt = self._attempts.setdefault(shard, Attempt())
        attempt.number += 1
        if (part := self._taken.pop(shard, None)) is not None:
            attempt.deaths.append(part)
        return attempt

    def take(self, shard: str, part: Part) -> None:
        """A worker is about to take a part of a shard; the one that it took before is done."""
        if self._taken.get(shard, Part(0)).stop:
            self._starts = 0
        self._taken[shard] = part

    def done(self, shard: str, segmented: int) -> None:
        """A shard is published, with the masks of so many slices."""
        self._attempts.pop(shard, None)
        self._taken.pop(shard, None)
        if (
            segmented
        ):  # a GPU that kills every worker has all its shards given up, and must end the job
            self._starts = 0
