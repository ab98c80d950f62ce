"""Finds the slices that kill workers.

A process that is killed (out of memory, segmentation fault) cannot say what it was doing. From the
`CAREFUL_FROM`-th attempt at a shard, a worker therefore takes the slices one by one, and names each
before it takes it, to a record that outlives the worker. A slice on which `DEATHS` workers died
goes to quarantine. After `GROUP_DEATHS` deaths in one row group, so do the slices behind the last
one named there.
"""

from dataclasses import dataclass, field

CAREFUL_FROM = 3
"""Attempt at a shard. The first deaths may have other reasons: a node that goes takes innocent
shards with it."""
DEATHS = 2
"""Workers that may die on one slice, or on reading one row group."""
GROUP_DEATHS = 6
"""Workers that may die in one row group: enough to find three slices."""


@dataclass(frozen=True, order=True)
class Step:
    """What a worker does next: read a row group, or predict one of its slices."""

    row_group: int
    row: int = -1
    """Of the row group's usable slices; -1 for reading the row group."""


@dataclass
class Attempt:
    """What is known of a shard when a worker starts it: number of the attempt, earlier deaths."""

    number: int = 0
    """From 1."""
    deaths: list[Step] = field(default_factory=list)
    """The steps on which workers died."""

    @property
    def careful(self) -> bool:
        """Whether the worker must name each step."""
        return self.number >= CAREFUL_FROM

    def why_given_up(self, step: Step) -> str | None:
        """Why a step must not be taken again; None if it may be taken."""
        deaths = self.deaths.count(step)
        if deaths >= DEATHS:
            doing = "read" if step.row < 0 else "segmented"
            return f"killed {deaths} workers while it was {doing}; Ray's logs say why"
        in_group = [death for death in self.deaths if death.row_group == step.row_group]
        if len(in_group) >= GROUP_DEATHS and step > max(in_group):
            return f"was not tried: {len(in_group)} workers died on earlier slices of its row group"
        return None


class CrashRecord:
    """Reports of workers on the shards in progress, kept in a process beside the driver."""

    def __init__(self) -> None:
        self._attempts: dict[str, Attempt] = {}
        self._taken: dict[str, Step] = {}
        self._starts = 0

    def start(self) -> int:
        """Count the start of a worker; return the number of starts since a slice was segmented."""
        self._starts += 1
        return self._starts

    def begin(self, shard: str) -> Attempt:
        """Begin an attempt at a shard; the worker that had the shard before has died."""
        attempt = self._attempts.setdefault(shard, Attempt())
        attempt.number += 1
        if (step := self._taken.pop(shard, None)) is not None:
            attempt.deaths.append(step)
        return attempt

    def take(self, shard: str, step: Step) -> None:
        """Name the next step of a shard; the one before it is done."""
        if self._taken.get(shard, Step(0)).row >= 0:
            self._starts = 0
        self._taken[shard] = step

    def done(self, shard: str, segmented: int) -> None:
        """Forget a published shard; `segmented` is the number of its masks."""
        self._attempts.pop(shard, None)
        self._taken.pop(shard, None)
        # A GPU that kills every worker has all slices given up, and must end the job.
        if segmented:
            self._starts = 0
