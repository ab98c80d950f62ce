"""Runs the workers of a training on Ray Train, and restarts them after a failure."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyarrow.fs
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from segmodel.archive.annotations import SliceRows
from segmodel.core.errors import LeaseLostError, SegmodelError, TrainingError
from segmodel.core.progress import say
from segmodel.data.splits import Split
from segmodel.runtime import ray_cluster
from segmodel.runtime.messages import receive_messages
from segmodel.settings.base import parse_workers
from segmodel.settings.training import RecipeConfig, TrainConfig
from segmodel.storage import store
from segmodel.storage.folder_lock import WorkerLease
from segmodel.training.console import Listener
from segmodel.training.messages import WorkerFailed
from segmodel.training.output import has_finished_epochs

RAY_FOLDER = ".ray"
"""Ray Train's own state while it runs, in the output folder."""
PLACEMENT_SECONDS = 15
"""How long an elastic training waits for its workers to be placed before it recounts the nodes.

Ray Train's view of the cluster may be 20 s old, and hold a node that has just died.
"""
RESIZE_SECONDS = 60.0
"""How often an elastic training looks for more nodes; a change repeats the epoch in progress."""


def run_workers(
    config: RecipeConfig,
    rows: SliceRows,
    split: Split,
    listener: Listener,
    max_failures: int,
    lease: WorkerLease,
) -> None:
    """Run the workers; restart them after a failure that may not recur.

    Args:
        config: the request.
        rows: the annotated slices of the archive.
        split: the patients that train and those that validate.
        listener: handles the workers' messages.
        max_failures: how often to restart. Nodes that are taken away do not count.
        lease: on the output folder.

    Raises:
        SegmodelError: of the kind that a worker met; its message names the node.
        TrainingError: the workers failed too often, or training diverged.
    """
    least, most = parse_workers(config.workers)
    use_gpu = ray_cluster.should_use_gpu(config.gpu, config.cpu, least)
    cpus = 1 if use_gpu else ray_cluster.cpus_per_worker(most)
    workers = f"{least} to {most}" if least < most else f"{most}"
    say(
        f"{len(split.train)} patients train, {len(split.valid)} validate; "
        f"starting workers: {workers}, on {'GPUs' if use_gpu else 'CPUs'}"
    )
    # mypy sees the former ScalingConfig and RunConfig.
    scaling = ScalingConfig(  # type: ignore[call-arg]
        num_workers=(least, most) if least < most else most,  # type: ignore[arg-type]
        use_gpu=use_gpu,
        resources_per_worker={"CPU": cpus} | ({"GPU": 1} if use_gpu else {}),
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )
    threads = None if use_gpu else cpus
    task = {"config": config, "rows": rows, "split": split, "threads": threads, "lease": lease}
    for failures in range(max_failures + 1):
        failed = _fit(config, task, scaling, listener, use_gpu)
        if failed is None:
            return
        reason = _raise_final(config, failed, listener.take_failure(), failures == max_failures)
        listener.status.print(
            f"a worker failed: {reason}; all start again ({failures + 1} of {max_failures} times)"
        )


def _raise_final(
    config: RecipeConfig, failed: TrainingFailedError, failure: WorkerFailed | None, last: bool
) -> str:
    """Raise the error of a failure that would recur, or of the last attempt; else return it."""
    reason = f"{failure.error} (on node {failure.node})" if failure else str(failed)
    if failure is not None and isinstance(failure.error, SegmodelError):
        if isinstance(failure.error, TrainingError):
            reason = f"{reason}; {_what_is_left(config)}"
        raise type(failure.error)(reason) from failed
    if last:
        if failure is not None and not isinstance(failure.error, OSError):
            reason = f"{reason}\n{failed}\n"  # the traceback
        raise TrainingError(
            f"training failed: {reason}; "
            f"{_what_is_left(config, '; continue from it with --resume')}"
        ) from failed
    return reason


def _fit(
    config: RecipeConfig,
    task: dict[str, Any],
    scaling: ScalingConfig,
    listener: Listener,
    use_gpu: bool,
) -> TrainingFailedError | None:
    """Run the workers once; returns the error that ended them, if one did."""
    # The watcher warns workers that their node will go; ours save every epoch anyway.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    least, most = parse_workers(config.workers)
    if least < most:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACEMENT_SECONDS))
    fs, path = store.filesystem(config.output)
    folder = store.join(config.output, RAY_FOLDER)
    task["lease"].check()
    store.remove(folder)  # of a training whose driver was killed
    with receive_messages(listener.handle) as queue:
        trainer = TorchTrainer(
            train_loop(config),
            train_loop_config=task | {"queue": queue},
            scaling_config=scaling,
            # Ray Train needs a folder that all nodes reach, as the output folder is.
            run_config=RunConfig(
                name=f"train-{time.time_ns()}",
                storage_path=store.join(path, RAY_FOLDER),
                storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
                # Ray Train would restart workers after any error, also one that would recur.
                failure_config=FailureConfig(max_failures=0),
                worker_runtime_env=None if use_gpu else ray_cluster.KEEP_FREED_MEMORY,
                # The driver prints errors of the workers, without a traceback.
                logging_config=LoggingConfig(log_level="CRITICAL"),  # type: ignore[call-arg]
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            return error
        finally:
            with suppress(LeaseLostError):  # otherwise the folder is another job's by now
                task["lease"].check()
                store.remove(folder)
    return None


def _what_is_left(config: RecipeConfig, again: str = "") -> str:
    if not isinstance(config, TrainConfig):
        return "nothing was changed"
    if not has_finished_epochs(config):
        return "no epoch was finished"
    return f"{store.join(config.output, 'last')} holds the last good checkpoint{again}"


def train_loop(config: RecipeConfig) -> Callable[[dict[str, Any]], None]:
    """The function that each worker runs."""
    return _train_loop if isinstance(config, TrainConfig) else _range_test_loop


def _train_loop(task: dict[str, Any]) -> None:
    # Here, so that the driver and Ray's own actors need not import torch and fastai.
    from segmodel.training.task import WorkerTask
    from segmodel.training.worker import run_training

    run_training(WorkerTask(**task))


def _range_test_loop(task: dict[str, Any]) -> None:
    from segmodel.training.task import WorkerTask
    from segmodel.training.worker import run_range_test

    run_range_test(WorkerTask(**task))
