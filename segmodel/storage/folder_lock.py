"""The lock of an output folder: one job at a time writes there.

`lease.json` in the folder names the job, which renews it while it lives. Creation, renewal and
take-over are conditional, so that one of several jobs succeeds: a hard link and flock on a local
disk, conditional PUTs (If-None-Match, If-Match) on S3. A store that ignores conditions overwrites:
what was written is therefore read back. Two jobs may then both believe for a moment that they won;
the next renewal finds it out. Times are those of the hosts' clocks, which must agree to within a
fraction of `EXPIRES_S`.

Workers of a training check the lease before each file that they publish (`WorkerLease`). Workers of
a segmentation do not: a shard that they still publish holds the same masks as the other job's.
"""

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import psutil

from segmodel.core.errors import ConfigError, LeaseError, LeaseLostError
from segmodel.core.progress import format_duration, say
from segmodel.storage import conditional, store

LEASE = "lease.json"
RENEW_S = 20.0
EXPIRES_S = 120.0
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a path that is no folder, cannot be made one, or is closed to this user."""


@dataclass(frozen=True)
class Holder:
    """Who holds a folder."""

    token: str
    """Made new by every job."""
    host: str
    pid: int
    since: float
    """Seconds since 1970."""
    renewed: float
    """Seconds since 1970."""

    def died_here(self) -> bool:
        """Whether it ran on this host and runs no more."""
        return self.host == socket.gethostname() and not psutil.pid_exists(self.pid)


class Lease:
    """The lease of one job on one folder.

    Args:
        output: the folder.
        clock: seconds since 1970.
        flag: of the command line, that names another folder.
    """

    def __init__(
        self, output: str, clock: Callable[[], float] = time.time, flag: str = "--output"
    ) -> None:
        self.output, self.clock, self.flag = output, clock, flag
        self.uri = store.join(output, LEASE)
        now = clock()
        self.holder = Holder(uuid.uuid4().hex, socket.gethostname(), os.getpid(), now, now)
        self._lost: str | None = None
        self._changing = threading.Lock()

    def acquire(self) -> None:
        """Take the folder.

        The lease of a job that died on this host, or has not renewed it for `EXPIRES_S`, is taken
        over.

        Raises:
            ConfigError: nothing can be written there.
            LeaseError: another job holds it.
        """
        try:
            self._acquire()
        except OSError as error:
            if error.errno not in _NO_FOLDER or not store.is_local(self.output):
                raise
            raise ConfigError(
                f"{self.output}: this job cannot write there ({error.strerror}). Give {self.flag} "
                "a folder that it may write into, or that it may create"
            ) from error

    def _acquire(self) -> None:
        now = self.clock()
        self.holder = replace(self.holder, since=now, renewed=now)
        try:
            conditional.create(self.uri, self._content())
        except FileExistsError:
            self._take_over()
        held, _ = _read(self.uri)
        if held.token != self.holder.token:
            raise LeaseError(self._refusal(held))

    def renew(self) -> None:
        """Say that this job lives; if another has taken the folder, `check` raises from now on."""
        with self._changing:
            if self._lost:
                return
            renewed = replace(self.holder, renewed=self.clock())
            try:
                held, version = _read(self.uri)
                if held.token == renewed.token:
                    conditional.replace(self.uri, _json(renewed), version)
            except FileNotFoundError:
                self._lost = f"{LEASE} is gone"
                return
            except FileExistsError:
                # Another job's, or this job's own: the client repeats a PUT without an answer.
                held, _ = _read(self.uri)
            if held.token == renewed.token:
                self.holder = renewed
            else:
                self._lost = _taken_over(held)

    def check(self) -> None:
        """Call this before every step that writes for the whole run.

        Raises:
            LeaseLostError: another job has the folder.
            OSError: the lease is too old and could not be renewed.
        """
        if self._lost is None and self.clock() - self.holder.renewed > EXPIRES_S:
            # This process slept, or the store did not answer; its error is raised here.
            self.renew()
        if self._lost is not None:
            raise _lost_error(self.output, self._lost)

    def for_workers(self) -> "WorkerLease":
        """The lease for the job's workers, which only check it."""
        return WorkerLease(self.output, self.holder.token)

    def release(self) -> None:
        """Give the folder back, unless another job has it."""
        with self._changing:
            try:
                held, version = _read(self.uri)
                if held.token == self.holder.token:
                    conditional.remove_version(self.uri, version)
            except (FileNotFoundError, FileExistsError):
                return  # taken over: the file is another job's

    def _take_over(self) -> None:
        try:
            held, version = _read(self.uri)
        except FileNotFoundError:
            raise LeaseError(
                f"{self.output}: another job has just ended here; give the same command again"
            ) from None
        if held.token == self.holder.token:
            return  # the client repeated a PUT without an answer
        if not held.died_here() and self.clock() - held.renewed <= EXPIRES_S:
            raise LeaseError(self._refusal(held))
        try:
            conditional.replace(self.uri, self._content(), version)
        except (FileExistsError, FileNotFoundError):
            raise LeaseError(
                f"{self.output}: another job has just taken this folder over; wait for it"
            ) from None
        say(
            f"{self.output}: took over from host {held.host}, process {held.pid}, which last "
            f"showed up at {_time(held.renewed)}"
        )

    def _refusal(self, held: Holder) -> str:
        silent = self.clock() - held.renewed
        return (
            f"{self.output} is in use by host {held.host}, process {held.pid}, since "
            f"{_time(held.since)} (last sign of life {format_duration(max(silent, 0))} ago). "
            f"Wait for that job, or give another {self.flag}; if it died, the folder is free "
            f"{format_duration(EXPIRES_S)} after its last sign of life"
        )

    def _content(self) -> bytes:
        return _json(self.holder)


@dataclass(frozen=True)
class WorkerLease:
    """The lease for a worker of the job, which may be on another machine and only checks it."""

    output: str
    """The folder."""
    token: str
    """Of the job."""

    def check(self) -> None:
        """Call this before each file that the worker publishes in the folder.

        Raises:
            LeaseLostError: another job has the folder.
        """
        try:
            held, _ = _read(store.join(self.output, LEASE))
        except FileNotFoundError:
            raise _lost_error(self.output, f"{LEASE} is gone") from None
        if held.token != self.token:
            raise _lost_error(self.output, _taken_over(held))


def _taken_over(held: Holder) -> str:
    return f"host {held.host}, process {held.pid}, took it over at {_time(held.since)}"


def _lost_error(output: str, reason: str) -> LeaseLostError:
    return LeaseLostError(
        f"{output}: this job lost the folder ({reason}) and stops; finished files stay valid. "
        "Wait for the other job, or stop it and give the same command again"
    )


@contextmanager
def acquire_lock(output: str, flag: str = "--output") -> Iterator[Lease]:
    """Keep the folder `output` for this job alone while the block runs.

    Args:
        output: the folder.
        flag: of the command line, that names another folder.

    Raises:
        ConfigError: nothing can be written there.
        LeaseError: another job holds it.
    """
    lease = Lease(output, flag=flag)
    lease.acquire()
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_S):
            try:
                lease.renew()
            except Exception as error:  # noqa: BLE001 - if it lasts, check raises
                say(f"warning: {lease.uri} could not be renewed: {error}")

    renewer = threading.Thread(target=renew, name="lease", daemon=True)
    renewer.start()
    try:
        yield lease
    finally:
        ended.set()
        renewer.join(timeout=RENEW_S)
        try:
            lease.release()
        except (OSError, LeaseError) as error:  # must not hide the error that ended the job
            say(f"warning: {lease.uri} is left behind, until it expires: {error}")


def _read(uri: str) -> tuple[Holder, str]:
    content, version = conditional.read_version(uri)
    try:
        values: dict[str, Any] = json.loads(content)
        return Holder(**values), version
    except (ValueError, TypeError) as error:
        raise LeaseError(
            f"{uri}: not a lease of this project ({error}); "
            "if no job works in that folder, delete it"
        ) from error


def _json(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder), indent=2) + "\n").encode()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
