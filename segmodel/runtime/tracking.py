"""Neptune, or nothing: a tracker never delays a job by more than ten seconds and never fails it."""

import dataclasses
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segmodel import __version__
from segmodel.settings.jobs import JobConfig, Tracking
from segmodel.storage import store

CONNECT_SECONDS = 8
STOP_SECONDS = 30
OFFLINE_FOLDER = ".neptune"
"""In the output folder; the name is the one that `neptune sync --path OUTPUT` looks for."""

_log = logging.getLogger(__name__)


class Tracker:
    """Tracks nothing. Names are paths such as `train/dice`."""

    def record(self, name: str, values: Mapping[str, Any]) -> None:
        """Set several values under one name."""

    def append(self, name: str, value: float, step: float) -> None:
        """Add a point to a series."""

    def upload(self, name: str, content: bytes, extension: str) -> None:
        """Store a file, such as a figure."""

    def close(self) -> None:
        """Send what is pending."""


class NeptuneTracker(Tracker):
    """Tracks in one Neptune run.

    Args:
        run: of the Neptune client.
        finish: called after the run has stopped.
    """

    def __init__(self, run: Any, finish: Callable[[], None]) -> None:
        self._run, self._finish = run, finish
        self._failed = False

    def record(self, name: str, values: Mapping[str, Any]) -> None:
        """Set several values under one name."""
        for key, value in values.items():
            self._guard(self._assign, f"{name}/{key}", value)

    def append(self, name: str, value: float, step: float) -> None:
        """Add a point to a series."""
        self._guard(lambda: self._run[name].append(value, step=step))

    def upload(self, name: str, content: bytes, extension: str) -> None:
        """Store a file, such as a figure."""
        self._guard(self._upload, name, content, extension)

    def close(self) -> None:
        """Send what is pending, for half a minute at most; the rest stays on disk for `neptune sync`."""
        self._guard(lambda: self._run.stop(seconds=STOP_SECONDS))
        self._guard(self._finish)

    def _assign(self, name: str, value: Any) -> None:
        plain = value if isinstance(value, bool | int | float | str) else str(value)
        self._run[name] = plain

    def _upload(self, name: str, content: bytes, extension: str) -> None:
        from neptune.types import File

        self._run[name].upload(File.from_content(content, extension=extension))

    def _guard(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever the client raises, the job goes on
            if not self._failed:
                _log.warning(
                    "tracking failed and the job goes on without: %s", type(error).__name__
                )
            self._failed = True


@contextmanager
def open_tracker(
    mode: Tracking, kind: str, output: str, *, tags: Sequence[str] = (), run_id: str | None = None
) -> Iterator[Tracker]:
    """A tracker for one run of a job.

    Args:
        mode: `none` does not import the client.
        kind: of job; the run is named after it and the output folder.
        output: the job's output folder; offline data is stored in it.
        tags: of the run, beside `segmodel` and the kind.
        run_id: of a run that may be opened again: what has the same id goes to the same run.
    """
    tracker = Tracker() if mode == "none" else _open_neptune(kind, output, tags, run_id)
    try:
        yield tracker
    finally:
        tracker.close()


def settings_of(config: JobConfig) -> dict[str, Any]:
    """A job's settings, for `Tracker.record`."""
    return dataclasses.asdict(config)


def _open_neptune(kind: str, output: str, tags: Sequence[str], run_id: str | None) -> Tracker:
    folder, finish = _offline_folder(output)
    os.environ["NEPTUNE_DATA_DIRECTORY"] = folder
    # The client's own git_ref would also send remotes, author and uncommitted changes.
    options = {
        "name": f"{kind} {output.rsplit('/', 1)[-1]}",
        "tags": ["segmodel", kind, *tags],
        "custom_run_id": run_id,
        "source_files": [],
        "git_ref": False,
    }
    tracker = _start(options, finish)
    tracker.record(
        "source", {"version": __version__, "revision": _revision(), "sha256": _source_sha256()}
    )
    if run_id is not None:
        tracker.record(
            "run", {"id": run_id}
        )  # offline the client keeps no custom id, and each opening is a run of its own
    return tracker


def _start(options: dict[str, Any], finish: Callable[[], None]) -> Tracker:
    try:
        if os.environ.get("NEPTUNE_API_TOKEN"):
            run = _connect(options)
            if run is not None:
                return NeptuneTracker(run, finish)
        return NeptuneTracker(
            _init_run(mode="offline", capture_stdout=False, capture_stderr=False, **options), finish
        )
    except Exception as error:  # noqa: BLE001 - whatever the client raises, the job goes on
        _log.warning(
            "Neptune could not be started and the job goes on untracked: %s: %s",
            type(error).__name__,
            error,
        )
        return Tracker()


def _revision() -> str:
    """Commit of the source, where it is a git checkout; with `-dirty` if the source is not as committed."""
    here = Path(__file__).parents[1]
    git = shutil.which("git")
    if git is None or not (here.parent / ".git").exists():
        return "unknown"
    describe = [
        git,
        "-C",
        str(here),
        "describe",
        "--always",
        "--abbrev=40",
        "--exclude=*",
        "--dirty",
    ]
    found = subprocess.run(describe, capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() or "unknown"


def _source_sha256() -> str:
    """Of the package's modules: tells whether two runs had the same code where no commit is known, as in submitted jobs."""
    here = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(f"{path.relative_to(here).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _init_run(**options: Any) -> Any:
    import neptune

    # The client announces itself on every start and stop, also offline; only its errors are news.
    logging.getLogger("neptune").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*NVML")  # a machine without a GPU is no news
        return neptune.init_run(**options)


def _connect(options: dict[str, Any]) -> Any | None:
    """A run on the server; None, and one warning, if there is none after `CONNECT_SECONDS`.

    The client itself tries for a minute. It goes on trying in its thread, where it holds up nobody; a run that it opens too
    late is closed again.
    """
    opened: list[Any] = []
    gave_up = threading.Event()

    def attempt() -> None:
        try:
            run = _init_run(**options)
        except Exception as error:  # noqa: BLE001 - reported by the caller
            failures.append(error)
            return
        opened.append(run)
        if gave_up.is_set():
            run.stop(seconds=1)

    failures: list[Exception] = []
    thread = threading.Thread(target=attempt, name="neptune-connect", daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if opened:
        return opened[0]
    gave_up.set()
    reason = type(failures[0]).__name__ if failures else f"no answer in {CONNECT_SECONDS} s"
    _log.warning(
        "Neptune's server cannot be used (%s): tracking offline; send it later with `neptune sync`",
        reason,
    )
    return None


def _offline_folder(output: str) -> tuple[str, Callable[[], None]]:
    """Where the client keeps its files, and what is to be done with them in the end."""
    if store.is_local(output):
        return store.join(store.filesystem(output)[1], OFFLINE_FOLDER), lambda: None
    temporary = tempfile.TemporaryDirectory(prefix="segmodel-neptune-")

    def finish() -> None:
        store.upload_folder(store.join(output, OFFLINE_FOLDER), temporary.name)
        temporary.cleanup()

    return temporary.name, finish
