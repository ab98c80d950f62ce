"""What every tracker can do, and the one that does nothing."""

from collections.abc import Mapping, Sequence
from typing import Any


class Tracker:
    """Tracks nothing. Names are paths such as `train/dice`.

    A caller says of everything whether it may name or show patients: a server gets only what does
    not, unless the user asks for more.
    """

    def record(self, name: str, values: Mapping[str, Any]) -> None:
        """Set several values: numbers, hashes, and words from a fixed choice."""

    def record_private(self, name: str, values: Mapping[str, Any]) -> None:
        """Set several values that may name patients, paths or machines."""

    def append(self, name: str, value: float, step: float) -> None:
        """Add a point to a series."""

    def upload(self, name: str, content: bytes, extension: str, *, shows_patients: bool) -> None:
        """Store a file, such as a figure."""

    def close(self) -> None:
        """Send what is pending."""


class Trackers(Tracker):
    """Several trackers that all get the same."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def record(self, name: str, values: Mapping[str, Any]) -> None:
        """Set several values: numbers, hashes, and words from a fixed choice."""
        for tracker in self.trackers:
            tracker.record(name, values)

    def record_private(self, name: str, values: Mapping[str, Any]) -> None:
        """Set several values that may name patients, paths or machines."""
        for tracker in self.trackers:
            tracker.record_private(name, values)

    def append(self, name: str, value: float, step: float) -> None:
        """Add a point to a series."""
        for tracker in self.trackers:
            tracker.append(name, value, step)

    def upload(self, name: str, content: bytes, extension: str, *, shows_patients: bool) -> None:
        """Store a file, such as a figure."""
        for tracker in self.trackers:
            tracker.upload(name, content, extension, shows_patients=shows_patients)

    def close(self) -> None:
        """Send what is pending."""
        for tracker in self.trackers:
            tracker.close()
