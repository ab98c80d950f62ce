"""Two jobs and one run folder; the clock is ours, nobody sleeps."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from segmodel.core.errors import ConfigError, LeaseError, LeaseLostError
from segmodel.storage import conditional, store
from segmodel.storage import folder_lock as lease_module
from segmodel.storage.folder_lock import Lease, acquire_lock


class Clock:
    """2001-09-09 01:46:40 UTC, until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1_000_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    return store.join(request.getfixturevalue("s3_bucket"), "lease", tmp_path.name)


def of_another_host(folder: str, clock: Clock) -> Lease:
    job = Lease(folder, clock)
    job.holder = replace(job.holder, host="node-7", pid=4321)
    return job


def test_the_second_job_is_refused_and_told_who_works_since_when(folder: str) -> None:
    clock = Clock()
    of_another_host(folder, clock).acquire()
    clock.seconds += 15
    with pytest.raises(
        LeaseError,
        match=r"host node-7, process 4321, since 2001-09-09T01:46:40.*last sign of life 15 s ago",
    ):
        Lease(folder, clock).acquire()


def test_a_released_folder_is_free_at_once(folder: str) -> None:
    clock = Clock()
    first = of_another_host(folder, clock)
    first.acquire()
    first.release()
    assert not store.exists(store.join(folder, "lease.json"))
    Lease(folder, clock).acquire()


def test_a_job_that_renews_keeps_its_folder(folder: str) -> None:
    clock = Clock()
    first = of_another_host(folder, clock)
    first.acquire()
    clock.seconds += 119
    first.renew()
    clock.seconds += 119
    with pytest.raises(LeaseError, match="in use"):
        Lease(folder, clock).acquire()
    first.check()


def test_a_lease_that_is_not_renewed_is_taken_over_after_120_seconds_and_not_before(
    folder: str,
) -> None:
    clock = Clock()
    of_another_host(folder, clock).acquire()
    clock.seconds += 120
    with pytest.raises(LeaseError, match="in use"):
        Lease(folder, clock).acquire()
    clock.seconds += 1
    Lease(folder, clock).acquire()


def test_a_job_that_slept_finds_its_folder_taken_and_stops(folder: str) -> None:
    clock = Clock()
    sleeper = of_another_host(folder, clock)
    sleeper.acquire()
    clock.seconds += 300
    other = Lease(folder, clock)
    other.acquire()
    with pytest.raises(
        LeaseLostError, match=f"host {socket.gethostname()}, process {os.getpid()}, took it over"
    ):
        sleeper.check()
    sleeper.release()  # must leave the other's lease alone
    other.renew()
    other.check()


def test_a_worker_of_a_job_that_slept_finds_its_folder_taken(folder: str) -> None:
    clock = Clock()
    sleeper = of_another_host(folder, clock)
    sleeper.acquire()
    worker = sleeper.for_workers()
    clock.seconds += 300
    sleeper.renew()
    worker.check()
    clock.seconds += 300
    Lease(folder, clock).acquire()
    with pytest.raises(LeaseLostError, match=f"process {os.getpid()}, took it over"):
        worker.check()
    store.remove(store.join(folder, "lease.json"))
    with pytest.raises(LeaseLostError, match=r"lease\.json is gone"):
        worker.check()


def test_a_job_that_slept_while_nobody_came_goes_on(folder: str) -> None:
    clock = Clock()
    sleeper = of_another_host(folder, clock)
    sleeper.acquire()
    clock.seconds += 300
    sleeper.check()
    with pytest.raises(LeaseError, match="last sign of life 0 s ago"):
        Lease(folder, clock).acquire()


def test_of_two_that_take_over_the_same_dead_lease_one_is_refused(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    of_another_host(folder, clock).acquire()
    clock.seconds += 300
    slow, fast = Lease(folder, clock), of_another_host(folder, clock)
    real_replace = conditional.replace

    def interrupted(uri: str, content: bytes, version: str) -> None:
        monkeypatch.setattr(conditional, "replace", real_replace)
        fast.acquire()  # between the look of the slow one and its writing
        real_replace(uri, content, version)

    monkeypatch.setattr(conditional, "replace", interrupted)
    with pytest.raises(LeaseError, match="another job has just taken this folder over"):
        slow.acquire()
    fast.renew()
    fast.check()


def test_a_renewal_does_not_write_over_a_lease_that_was_taken_in_between(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    first = of_another_host(folder, clock)
    first.acquire()
    clock.seconds += 300
    real_replace, other = conditional.replace, Lease(folder, clock)

    def interrupted(uri: str, content: bytes, version: str) -> None:
        monkeypatch.setattr(conditional, "replace", real_replace)
        other.acquire()
        real_replace(uri, content, version)

    monkeypatch.setattr(conditional, "replace", interrupted)
    first.renew()
    with pytest.raises(LeaseLostError, match="took it over"):
        first.check()
    other.check()


def test_the_lease_of_a_process_of_this_host_that_is_gone_is_taken_over_at_once(
    tmp_path: Path,
) -> None:
    clock = Clock()
    dead = Lease(str(tmp_path), clock)
    free_pid = next(pid for pid in range(2**22 - 1, 1, -1) if not psutil.pid_exists(pid))
    dead.holder = replace(dead.holder, pid=free_pid)
    dead.acquire()
    Lease(str(tmp_path), clock).acquire()


def test_the_lease_of_a_living_process_of_this_host_is_refused(tmp_path: Path) -> None:
    clock = Clock()
    Lease(str(tmp_path), clock).acquire()
    with pytest.raises(LeaseError, match=f"process {os.getpid()}"):
        Lease(str(tmp_path), clock).acquire()


def test_a_lease_that_cannot_be_given_back_does_not_hide_what_ended_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def silent(uri: str, version: str) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(conditional, "remove_version", silent)

    def work() -> None:
        with acquire_lock(str(tmp_path)):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        work()
    assert "lease.json is left behind, until it expires: no answer" in capsys.readouterr().out


def test_a_lease_file_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text("{}")
    with pytest.raises(LeaseError, match=r"lease\.json: not a lease"):
        Lease(str(tmp_path)).acquire()


def test_a_folder_is_held_renewed_and_given_back_even_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.01)
    path = tmp_path / "lease.json"

    def work() -> None:
        with acquire_lock(str(tmp_path)) as held:
            since = json.loads(path.read_text())["since"]
            while (
                held.holder.renewed == since
            ):  # until the thread has renewed it once; pytest's timeout ends it if it never does
                pass
            assert json.loads(path.read_text())["renewed"] > since
            raise InterruptedError

    with pytest.raises(InterruptedError):
        work()
    assert not path.exists()


def test_a_store_that_does_not_answer_is_said_and_then_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    job = Lease(str(tmp_path), clock)
    job.acquire()

    def silent(uri: str) -> tuple[bytes, str]:
        raise TimeoutError("no answer")

    monkeypatch.setattr(conditional, "read_version", silent)
    clock.seconds += 100
    job.check()  # still its own for 20 s, whatever the store does
    clock.seconds += 21
    with pytest.raises(TimeoutError, match="no answer"):
        job.check()


@pytest.mark.parametrize("place", ["a-file", "a-file/below", "/proc/no-folder"])
def test_a_place_that_cannot_be_written_to_is_one_line_with_the_flag(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "a-file").write_text("of the user")
    with (
        pytest.raises(ConfigError, match=r"cannot write there \(.*\)\. Give --run a folder"),
        acquire_lock(str(tmp_path / place), "--run"),
    ):
        pass
    assert (tmp_path / "a-file").read_text() == "of the user"
