"""What the driver of a training does when a worker fails; Ray Train itself is left out."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.train import TrainingFailedError

from segmodel.core.errors import ArchiveError, TrainingError
from segmodel.data.splits import Split
from segmodel.runtime import ray_cluster
from segmodel.runtime.tracker import Tracker
from segmodel.settings.training import TrainConfig
from segmodel.storage.folder_lock import Lease, WorkerLease
from segmodel.training import worker as training_worker
from segmodel.training import worker_group
from segmodel.training.console import TrainingListener
from segmodel.training.messages import WorkerFailed


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> TrainingListener:
    monkeypatch.setattr(ray_cluster, "should_use_gpu", lambda *_: False)
    monkeypatch.setattr(ray_cluster, "cpus_per_worker", lambda workers: 1)
    return TrainingListener(Tracker())


def run(listener: TrainingListener, output: Path, max_failures: int = 3) -> None:
    config = TrainConfig(archive="/a", output=str(output))
    rows: Any = None
    lease = WorkerLease(str(output), "")
    worker_group.run_workers(config, rows, Split((), ()), listener, max_failures, lease)


def failing(listener: TrainingListener, *failures: WorkerFailed | None) -> tuple[Any, list[int]]:
    """In place of `_fit`: each attempt ends with a failure; None means a killed worker."""
    attempts: list[int] = []

    def fit(*_: object) -> TrainingFailedError | None:
        attempts.append(len(attempts))
        if len(attempts) > len(failures):
            return None
        if (failure := failures[len(attempts) - 1]) is not None:
            listener.handle(failure)
        return TrainingFailedError("a worker failed")

    return fit, attempts


def test_an_error_that_would_come_again_ends_the_training_and_names_the_node(
    listener: TrainingListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, attempts = failing(listener, WorkerFailed(ArchiveError("row group 4 is damaged"), "n7"))
    monkeypatch.setattr(worker_group, "_fit", fit)
    with pytest.raises(ArchiveError, match=r"row group 4 is damaged \(on node n7\)"):
        run(listener, tmp_path)
    assert attempts == [0]


def test_a_dead_worker_and_a_bad_disk_start_the_workers_again(
    listener: TrainingListener,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit, attempts = failing(listener, None, WorkerFailed(OSError("OSError: bad sector"), "n7"))
    monkeypatch.setattr(worker_group, "_fit", fit)
    run(listener, tmp_path)
    assert attempts == [0, 1, 2]
    printed = capsys.readouterr().out
    assert "OSError: bad sector (on node n7); all start again (2 of 3 times)" in printed


def test_workers_that_fail_too_often_end_the_training(
    listener: TrainingListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, attempts = failing(listener, *[WorkerFailed(OSError("bad sector"), "n7")] * 9)
    monkeypatch.setattr(worker_group, "_fit", fit)
    with pytest.raises(TrainingError, match=r"bad sector \(on node n7\); no epoch was finished"):
        run(listener, tmp_path, max_failures=1)
    assert attempts == [0, 1]


def test_the_failure_that_says_what_to_do_wins_over_those_that_follow_from_it(
    listener: TrainingListener,
) -> None:
    cause = WorkerFailed(ArchiveError("damaged"), "n7")
    listener.handle(WorkerFailed(RuntimeError("connection closed by peer"), "n8"))
    listener.handle(cause)
    listener.handle(WorkerFailed(ArchiveError("missing"), "n9"))
    assert listener.take_failure() is cause
    assert listener.take_failure() is None


@pytest.mark.parametrize(
    ("error", "told", "text"),
    [
        (ArchiveError("damaged"), ArchiveError, "damaged"),
        (OSError(5, "bad sector"), OSError, "OSError: .Errno 5. bad sector"),
        (ValueError("shape"), RuntimeError, "ValueError: shape"),
        (
            torch.OutOfMemoryError("CUDA"),
            TrainingError,
            "GPU's memory is too small .* give a small",
        ),
    ],
)
def test_a_worker_tells_of_its_error_and_fails(
    error: Exception, told: type[Exception], text: str
) -> None:
    sent: list[WorkerFailed] = []
    queue: Any = SimpleNamespace(put=sent.append)
    expected = TrainingError if isinstance(error, torch.OutOfMemoryError) else type(error)
    with pytest.raises(expected), training_worker.report_failure(queue):
        raise error
    (message,) = sent
    assert type(message.error) is told
    with pytest.raises(told, match=text):
        raise message.error


@pytest.mark.parametrize("taken", [False, True])
def test_ray_s_files_of_another_job_that_took_the_folder_are_left_alone(
    listener: TrainingListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    lease = Lease(str(tmp_path))
    lease.acquire()

    class Trainer:
        def __init__(self, *_: object, **__: object) -> None: ...

        def fit(self) -> None:
            (tmp_path / ".ray").mkdir()
            if taken:  # this job sleeps, its lease expires, and another one begins
                (tmp_path / "lease.json").unlink()
                Lease(str(tmp_path)).acquire()

    monkeypatch.setattr(worker_group, "TorchTrainer", Trainer)
    monkeypatch.setattr(worker_group, "receive_messages", lambda handle: contextlib.nullcontext())
    config, task = TrainConfig(archive="/a", output=str(tmp_path)), {"lease": lease.for_workers()}
    scaling: Any = None
    assert worker_group._fit(config, task, scaling, listener, use_gpu=False) is None
    assert (tmp_path / ".ray").exists() is taken
