"""Opens the trackers of a job, and divides its settings into public and private ones."""

import dataclasses
import hashlib
import json
import logging
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from segmodel import __version__
from segmodel.runtime.tracker import Tracker, Trackers
from segmodel.settings.base import TrackedConfig
from segmodel.storage import store

TRACKED = "tracked.json"
"""In the output folder: all values that a tracker gets, readable without one."""
PUBLIC_TEXTS = {"workers": None, "encoder_weights": ("imagenet", "none")}
"""Settings of free text that hold nothing of a patient, with the values for which that is so."""

_log = logging.getLogger(__name__)


class FileTracker(Tracker):
    """Keeps all values for `tracked.json`; series and figures lie in files of their own anyway."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}

    def record(self, name: str, values: Mapping[str, Any]) -> None:
        """Set several values under one name."""
        self.values.setdefault(name, {}).update(values)

    def record_private(self, name: str, values: Mapping[str, Any]) -> None:
        """Set several values under one name: the folder is the user's own."""
        self.record(name, values)

    def publish(self, output: str) -> None:
        """Write the file; if that fails, log a warning, since the results are there without it."""
        text = json.dumps(self.values, indent=2, default=str) + "\n"
        try:
            store.publish(store.join(output, TRACKED), text.encode())
        except OSError as error:
            _log.warning("%s/%s could not be written: %s", output, TRACKED, error)


@contextmanager
def open_tracker(
    config: TrackedConfig,
    kind: str,
    output: str,
    *,
    tags: Sequence[str] = (),
    run_id: str | None = None,
) -> Iterator[Tracker]:
    """The trackers of one run of a job; its settings and its source are recorded at once.

    Args:
        config: of the job. With tracking `none` no client is imported.
        kind: of job; the run is named after it and the output folder.
        output: the job's output folder; offline data is stored in it.
        tags: of the run, beside `segmodel` and the kind.
        run_id: of a run that may be opened again: what has the same id goes to the same run.
    """
    values = FileTracker()
    tracker = Trackers([values, *_client(config, kind, output, tags, run_id)])
    try:
        tracker.record("source", source())
        public, private = divide_settings(config)
        tracker.record("parameters", public)
        tracker.record_private("parameters", private)
        yield tracker
        values.publish(output)
    finally:
        tracker.close()


def settings_of(config: TrackedConfig) -> dict[str, Any]:
    """A job's settings, for its run folder."""
    return dataclasses.asdict(config)


def divide_settings(config: TrackedConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(public, private) settings of a job.

    Public are numbers and words from a fixed choice. A free text may be a path or hold a patient's
    id, and is private.
    """
    hints = get_type_hints(type(config))
    public: dict[str, Any] = {}
    private: dict[str, Any] = {}
    for name, value in settings_of(config).items():
        (public if _is_public(name, value, hints[name]) else private)[name] = value
    return public, private


def _is_public(name: str, value: Any, hint: Any) -> bool:
    if name in PUBLIC_TEXTS:
        words = PUBLIC_TEXTS[name]
        return words is None or value in words
    kinds = set(_kinds(hint))
    if value is None or isinstance(value, str):
        return value is None or value in kinds
    parts = value if isinstance(value, list | tuple) else [value]
    return not kinds & {str, Any} and all(isinstance(part, bool | int | float) for part in parts)


def _kinds(hint: Any) -> Iterator[Any]:
    """The plain types in a type hint, and the words of its literals."""
    if get_origin(hint) is None:
        yield hint
    elif get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        for part in get_args(hint):
            yield from _kinds(part)


def _client(
    config: TrackedConfig, kind: str, output: str, tags: Sequence[str], run_id: str | None
) -> list[Tracker]:
    match config.tracking:
        case "none":
            return []
        case "neptune":
            from segmodel.runtime.neptune_tracker import open_neptune

            track_patients = config.track_patients
            return [open_neptune(kind, output, tags, run_id, track_patients=track_patients)]
        case "tensorboard":
            from segmodel.runtime.tensorboard_tracker import TensorBoardTracker

            return [TensorBoardTracker(kind, output)]


def source() -> dict[str, str]:
    """Version, commit and hash of this package's source."""
    return {"version": __version__, "revision": _revision(), "sha256": _source_sha256()}


def _revision() -> str:
    """Commit of the source where it is a git checkout; `-dirty` if the source was changed since."""
    here = Path(__file__).parents[1]
    git = shutil.which("git")
    if git is None or not (here.parent / ".git").exists():
        return "unknown"
    options = ["--always", "--abbrev=40", "--exclude=*", "--dirty"]
    describe = [git, "-C", str(here), "describe", *options]
    found = subprocess.run(describe, capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() or "unknown"


def _source_sha256() -> str:
    """SHA-256 over the package's modules: tells two sources apart where no commit is known."""
    here = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(f"{path.relative_to(here).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
