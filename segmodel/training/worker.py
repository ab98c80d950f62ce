"""What each worker of a training or of a learning-rate range test runs."""

import contextlib
import socket
import time
from collections.abc import Iterator

import torch

from segmodel.core.errors import SegmodelError, TrainingError
from segmodel.report import figures
from segmodel.report.training_page import SUGGESTION
from segmodel.runtime.messages import MessageQueue
from segmodel.settings.training import FindLrConfig, TrainConfig
from segmodel.storage import csv_files, store
from segmodel.training.learner import Cycles, fit
from segmodel.training.lr_range_test import RangeTest, range_test
from segmodel.training.messages import (
    RangeTestDone,
    RangeTestStarted,
    RangeTestStep,
    WorkerFailed,
)
from segmodel.training.pictures import figure_uri
from segmodel.training.recorder import STEP_MESSAGE_SECONDS, TrainingRecorder
from segmodel.training.task import Worker, WorkerTask
from segmodel.training.worker_setup import SMALLER_BATCH, set_up_worker

AUTO_LR_MIN, AUTO_LR_MAX, AUTO_STEPS = FindLrConfig.lr_min, FindLrConfig.lr_max, FindLrConfig.steps


def run_training(task: WorkerTask) -> None:
    """Train, from the last whole epoch if there is one; the first worker writes and reports.

    Raises:
        Exception: any error. The driver is told first; Ray Train then ends all workers.
    """
    config = task.config
    assert isinstance(config, TrainConfig)  # noqa: S101 - the driver gave it
    with report_failure(task.queue):
        worker = set_up_worker(task, resume=True)
        cycles = worker.state.cycles if worker.state else _resolve_cycles(worker, config)
        recorder = TrainingRecorder(worker, cycles) if worker.first else None
        fit(
            worker.learner,
            cycles,
            config,
            epochs_done=worker.state.epochs_done if worker.state else 0,
            on_step=recorder.step if recorder else _ignore,
            on_epoch=recorder.epoch if recorder else _ignore,
        )
        if recorder is not None:
            recorder.finish()


def run_range_test(task: WorkerTask) -> None:
    """Run a learning-rate range test; the first worker writes its results.

    Raises:
        Exception: any error. The driver is told first; Ray Train then ends all workers.
    """
    config = task.config
    assert isinstance(config, FindLrConfig)  # noqa: S101 - the driver gave it
    with report_failure(task.queue):
        worker = set_up_worker(task, resume=False)
        _range_test(worker, config.lr_min, config.lr_max, config.steps)


@contextlib.contextmanager
def report_failure(queue: MessageQueue) -> Iterator[None]:
    """Tell the driver of an error and its node, then raise it.

    A worker must not return after an error: the others would wait for it in their next collective.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        small = TrainingError(f"the GPU's memory is too small ({error}): {SMALLER_BATCH}")
        queue.put(WorkerFailed(small, socket.gethostname()))
        raise small from error
    except Exception as error:
        told: Exception = error
        if not isinstance(error, SegmodelError):
            # The error may not be picklable, or need modules that the driver does not import.
            kind = OSError if isinstance(error, OSError) else RuntimeError
            told = kind(f"{type(error).__name__}: {error}")
        queue.put(WorkerFailed(told, socket.gethostname()))
        raise


def _resolve_cycles(worker: Worker, config: TrainConfig) -> Cycles:
    found = None
    if any(lr == "auto" for _, lr in config.cycles):
        found = _range_test(worker, AUTO_LR_MIN, AUTO_LR_MAX, AUTO_STEPS)
    return tuple(
        (epochs, found if found is not None and lr == "auto" else float(lr))
        for epochs, lr in config.cycles
    )


def _range_test(worker: Worker, lr_min: float, lr_max: float, steps: int) -> float:
    config, queue = worker.task.config, worker.task.queue
    if worker.first:
        queue.put(RangeTestStarted(steps))
    told_at = 0.0

    def on_step(step: int) -> None:
        nonlocal told_at
        if worker.first and time.monotonic() - told_at >= STEP_MESSAGE_SECONDS:
            told_at = time.monotonic()
            queue.put(RangeTestStep(step))

    found = range_test(
        worker.learner,
        config,
        lr_min=lr_min,
        lr_max=lr_max,
        steps=steps,
        on_step=on_step,
    )
    if worker.first:
        _write_range_test(found, worker)
    return found.suggestion


def _write_range_test(found: RangeTest, worker: Worker) -> None:
    """Write the curve, also if it suggests nothing, because it shows why."""
    task, config, suggestion = worker.task, worker.task.config, None
    with contextlib.suppress(TrainingError):  # the caller raises it
        suggestion = found.suggestion
    columns = zip(found.lrs, found.losses, found.smoothed, strict=True)
    rows = [{"lr": lr, "loss": loss, "smoothed_loss": smoothed} for lr, loss, smoothed in columns]
    if rows:
        task.publish(csv_files.publish_csv, store.join(config.output, "lr_find.csv"), rows)
        uri = figure_uri(config, "lr_find.png")
        task.publish(
            figures.range_test_curve, found.lrs, found.losses, found.smoothed, suggestion, uri
        )
        suggested = store.join(config.output, SUGGESTION)
        task.publish(store.publish_json, suggested, {"suggested_lr": suggestion})
    if suggestion is not None:
        task.queue.put(RangeTestDone(tuple(rows), suggestion))


def _ignore(*_: object) -> None:
    """Do nothing; for the workers that record nothing."""
