"""Progress of a long job as plain lines: readable on a terminal and in `ray job logs`, and never a flood."""

import sys
import time
from collections.abc import Callable


class Progress:
    """Counts units of work and prints a line now and then: done, rate, time left.

    Args:
        total: units of work in all.
        unit: what is counted, in the plural.
        interval_s: least time between two lines; by default 5 s on a terminal and 30 s elsewhere.
        clock: seconds, monotonic.
        done: units that an earlier run has done; they count as done, not as fast.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        interval_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        done: int = 0,
    ) -> None:
        if interval_s is None:
            interval_s = 5.0 if sys.stdout.isatty() else 30.0
        self.total, self.unit, self.interval_s, self.clock = total, unit, interval_s, clock
        self.done = self.done_before = done
        self.started = self.printed = clock()

    def advance(self, count: int, note: str = "") -> None:
        """Count `count` more units; print a line if the last one is old enough."""
        self.done += count
        now = self.clock()
        if now - self.printed >= self.interval_s:
            self.printed = now
            print(self.line(note), flush=True)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return self.clock() - self.started

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self.done_before) / max(self.seconds, 1e-9)

    def line(self, note: str = "") -> str:
        """The state in one line."""
        text = f"{self.done:,} of {self.total:,} {self.unit}, {self.rate:.3g} {self.unit}/s"
        if self.done_before < self.done < self.total:
            text += f", {duration((self.total - self.done) / self.rate)} left"
        return f"{text}, {note}" if note else text


def duration(seconds: float) -> str:
    """A time for people: `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
