"""Lines for the user about a running job, readable on a terminal and in `ray job logs`.

The library prints nowhere else.
"""

import shutil
import sys
import time
from collections.abc import Callable

REWRITE_S = 0.5
"""Least time between two texts of a status line."""


def say(line: str) -> None:
    """Print a line for the user at once."""
    print(line, flush=True)


class Progress:
    """Counts units of work and now and then prints what is done, the rate and the time left.

    Args:
        total: units of work in all.
        unit: what is counted, in the plural.
        interval_s: least time between two lines; by default 5 s on a terminal and 30 s elsewhere.
        clock: seconds, monotonic.
        done: units that an earlier run has done; they do not count for the rate.
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
        """Count more units; print a line if the last one is old enough."""
        self.done += count
        now = self.clock()
        if now - self.printed >= self.interval_s:
            self.printed = now
            say(self.line(note))

    def restart(self) -> None:
        """Measure the rate from now on: a slow start, such as a first step, does not count."""
        self.done_before, self.started = self.done, self.clock()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self.done_before) / max(self.seconds, 1e-9)

    def left(self) -> str:
        """The time left, for people; empty while it is unknown, and at the end."""
        if not self.done_before < self.done < self.total:
            return ""
        return format_duration((self.total - self.done) / self.rate)

    def line(self, note: str = "") -> str:
        """The state in one line."""
        text = f"{self.done:,} of {self.total:,} {self.unit}, {self.rate:.3g} {self.unit}/s"
        if left := self.left():
            text += f", {left} left"
        return f"{text}, {note}" if note else text


class StatusLine:
    """The last line of a terminal, rewritten in place. Without a terminal it shows nothing.

    Args:
        terminal: whether standard output is one; by default this is found out.
        clock: seconds, monotonic.
    """

    def __init__(
        self, terminal: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.terminal = sys.stdout.isatty() if terminal is None else terminal
        self.clock = clock
        self._shown_at: float | None = None

    def show(self, text: str) -> None:
        """Replace the status, unless the last one was shown a moment ago."""
        now = self.clock()
        if self.terminal and (self._shown_at is None or now - self._shown_at >= REWRITE_S):
            self._shown_at = now
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width]}\033[K", end="", flush=True)

    def print(self, line: str) -> None:
        """Print a line that stays, in place of the status."""
        clear = "\r\033[K" if self._shown_at is not None else ""
        self._shown_at = None
        say(f"{clear}{line}")

    def clear(self) -> None:
        """Remove the status."""
        if self._shown_at is not None:
            self._shown_at = None
            print("\r\033[K", end="", flush=True)


def format_duration(seconds: float) -> str:
    """Format a duration for people: `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
