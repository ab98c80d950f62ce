"""The Neptune tracker: it never delays a job by more than ten seconds and never fails it.

Neptune's hosted service has closed: a server is the user's own. Without one the client writes an
offline folder.
"""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segmodel.runtime.tracker import GuardedTracker, Tracker, local_folder

CONNECT_SECONDS = 8
STOP_SECONDS = 30
OFFLINE_FOLDER = ".neptune"
"""In the output folder; the name is the one that `neptune sync --path OUTPUT` looks for."""
SERVER_CAPTURES_NOTHING = {
    "capture_stdout": False,
    "capture_stderr": False,
    "capture_traceback": False,
    "capture_hardware_metrics": False,  # would also send the name of this machine
}

_log = logging.getLogger(__name__)


class NeptuneTracker(GuardedTracker):
    """Tracks in one Neptune run.

    Args:
        run: of the Neptune client.
        finish: called after the run has stopped.
        private: whether the run may hold what shows or names patients.
    """

    def __init__(self, run: Any, finish: Callable[[], None], *, private: bool) -> None:
        super().__init__()
        self._run, self._finish, self._private = run, finish, private

    def record(self, name: str, values: Mapping[str, Any]) -> None:
        """Set several values under one name."""
        for key, value in values.items():
            self._guard(self._assign, f"{name}/{key}", value)

    def record_private(self, name: str, values: Mapping[str, Any]) -> None:
        """Set several values that may name patients, paths or machines."""
        if self._private:
            self.record(name, values)

    def append(self, name: str, value: float, step: float) -> None:
        """Add a point to a series."""
        self._guard(lambda: self._run[name].append(value, step=step))

    def upload(self, name: str, content: bytes, extension: str, *, shows_patients: bool) -> None:
        """Store a file, such as a figure."""
        if self._private or not shows_patients:
            self._guard(self._upload, name, content, extension)

    def close(self) -> None:
        """Send what is pending for at most half a minute; the rest stays for `neptune sync`."""
        self._guard(lambda: self._run.stop(seconds=STOP_SECONDS))
        self._guard(self._finish)

    def _assign(self, name: str, value: Any) -> None:
        plain = value if isinstance(value, bool | int | float | str) else str(value)
        self._run[name] = plain

    def _upload(self, name: str, content: bytes, extension: str) -> None:
        from neptune.types import File

        self._run[name].upload(File.from_content(content, extension=extension))


def open_neptune(
    kind: str, output: str, tags: Sequence[str], run_id: str | None, *, track_patients: bool
) -> Tracker:
    """A Neptune run: on the server that NEPTUNE_API_TOKEN names, or in the output folder.

    What is meant for a server holds nothing of a patient unless `track_patients`, even if it has to
    wait in the output folder. An offline run without any server holds everything.

    Returns:
        The tracker; one that tracks nothing if the client cannot be started.
    """
    private = track_patients or not os.environ.get("NEPTUNE_API_TOKEN")
    folder, finish = local_folder(output, OFFLINE_FOLDER)
    os.environ["NEPTUNE_DATA_DIRECTORY"] = folder
    # The client's own git_ref would also send remotes, author and uncommitted changes.
    options = {
        "name": f"{kind} {output.rsplit('/', 1)[-1]}" if private else kind,
        "tags": ["segmodel", kind, *tags],
        "custom_run_id": run_id,
        "source_files": [],
        "git_ref": False,
        **({} if private else SERVER_CAPTURES_NOTHING),
    }
    run = _start(options)
    if run is None:
        return Tracker()
    tracker = NeptuneTracker(run, finish, private=private)
    if run_id is not None:
        # Offline the client keeps no custom id, and each opening is a run of its own.
        tracker.record("run", {"id": run_id})
    return tracker


def _start(options: dict[str, Any]) -> Any | None:
    try:
        if os.environ.get("NEPTUNE_API_TOKEN"):
            run = _connect(options)
            if run is not None:
                return run
        quiet = {"capture_stdout": False, "capture_stderr": False}
        return _init_run(mode="offline", **(options | quiet))
    except Exception as error:  # noqa: BLE001 - whatever the client raises, the job goes on
        _log.warning(
            "Neptune could not be started and the job goes on untracked: %s: %s",
            type(error).__name__,
            error,
        )
        return None


def _init_run(**options: Any) -> Any:
    import neptune

    # The client announces itself on every start and stop, also offline; only its errors are news.
    logging.getLogger("neptune").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*NVML")  # a machine without a GPU is no news
        return neptune.init_run(**options)


def _connect(options: dict[str, Any]) -> Any | None:
    """A run on the server; None, and one warning, if there is none after `CONNECT_SECONDS`.

    The client itself tries for a minute. It goes on trying in its thread, where it holds up nobody.
    A run that it opens too late is closed again.
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
