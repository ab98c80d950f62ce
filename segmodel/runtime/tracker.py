"""What every tracker can do, and what trackers have in common."""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segmodel.storage import store

_log = logging.getLogger(__name__)


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
    """Passes everything on to several trackers."""

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


class GuardedTracker(Tracker):
    """Base of trackers whose client may fail: one warning is logged, the job continues."""

    def __init__(self) -> None:
        self._failed = False

    def _guard(self, call: Callable[..., object], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever the client raises, the job goes on
            if not self._failed:
                _log.warning(
                    "tracking failed and the job goes on without: %s", type(error).__name__
                )
            self._failed = True


def local_folder(output: str, name: str) -> tuple[str, Callable[[], None]]:
    """A local folder for a tracker's files, and a call that puts them into `name` of the output.

    The folder is that one itself where the output is local.
    """
    if store.is_local(output):
        return store.join(store.filesystem(output)[1], name), lambda: None
    temporary = tempfile.TemporaryDirectory(prefix="segmodel-tracking-")

    def finish() -> None:
        store.upload_folder(store.join(output, name), temporary.name)
        temporary.cleanup()

    return temporary.name, finish
