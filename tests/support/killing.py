"""Segments an archive in processes that die of SIGKILL or of a full disk, at any step of writing.

`python -m tests.support.killing ARCHIVE CHECKPOINT FOLDER SEED KILLS` makes FOLDER/undisturbed,
then FOLDER/0, FOLDER/1, … until KILLS processes were killed. It prints as JSON how many were killed
and how many slices all of them put through the network. Each process is a whole job without Ray:
forked, not started, so that a hundred deaths take seconds.
"""

import contextlib
import errno
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from segmodel.archive.reader import Shard
from segmodel.runs.run_file import Run
from segmodel.runtime import ray_cluster
from segmodel.segmentation import driver as segmentation_driver
from segmodel.segmentation.actors import Actors
from segmodel.segmentation.crash_isolation import CrashRecord
from segmodel.segmentation.plan import SegmentationPlan
from segmodel.segmentation.worker import SegmentShards
from segmodel.settings.segment import SegmentConfig

SHARD_SLICES = 64
THREADS = 3
"""That segment in one process, as in a worker on CPUs."""
FULL = 28
"""Exit code of a process that found the disk full."""
STEPS: list[tuple[Any, str]] = [
    (tempfile, "mkstemp"),
    (os, "fsync"),
    (os, "link"),
    (Path, "replace"),
    (Path, "unlink"),
    (LocalFileSystem, "rm"),
    (LocalFileSystem, "rm_file"),
]
"""All by which a job changes a folder."""


def main(archive: str, model: str, folder: str, seed: str, kills: str) -> None:
    choose = random.Random(int(seed))
    counter = Path(folder) / "inferred"
    started = time.monotonic()
    assert os.waitstatus_to_exitcode(segment(archive, model, f"{folder}/undisturbed", counter)) == 0
    seconds = time.monotonic() - started
    counter.unlink()
    killed, failed, runs = 0, 0, 0
    while killed < int(kills):
        while True:
            moment, step = (
                (choose.uniform(0, seconds), 0)
                if choose.random() < 0.5
                else (None, choose.randint(1, 30))
            )
            how = choose.choice(("before", "after", "full"))
            status = os.waitstatus_to_exitcode(
                segment(
                    archive, model, f"{folder}/{runs}", counter, moment=moment, step=step, how=how
                )
            )
            if status == 0:
                break
            assert status in (-signal.SIGKILL, FULL)
            killed += status == -signal.SIGKILL
            failed += status == FULL
        runs += 1
    print(
        json.dumps(
            {"killed": killed, "failed": failed, "runs": runs, "inferred": counter.stat().st_size}
        )
    )


def segment(
    archive: str,
    model: str,
    output: str,
    counter: Path,
    *,
    moment: float | None = None,
    step: int = 0,
    how: str = "",
) -> int:
    """One process that segments; returns its status."""
    pid = os.fork()
    if pid == 0:
        try:
            job(
                SegmentConfig(
                    archive=archive,
                    checkpoint=model,
                    output=output,
                    batch_size=16,
                    shard_slices=SHARD_SLICES,
                    tracking="none",
                    cpu=True,
                    workers="1",
                    precision="fp32",  # "auto" is decided by a task on Ray
                    max_quarantined=1.0,
                ),
                counter,
                step,
                how,
            )
            os._exit(0)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                os._exit(FULL)
            raise
        finally:
            traceback.print_exc()
            os._exit(1)
    if moment is not None:
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def job(config: SegmentConfig, counter: Path, step: int, how: str) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if step:
        die_at(step, how)

    def without_ray(
        plan: SegmentationPlan, run: Run, actors: Actors, todo: list[Shard], *_: Any
    ) -> float:
        worker = SegmentShards(
            archive=plan.archive.uri,
            checkpoint_folder=plan.checkpoint_folder,
            output=plan.output,
            fingerprint=run.fingerprint,
            actors=replace(actors, use_gpu=False, compiled=False, cpus=1),
            max_starts=1,
            queue=SimpleNamespace(put=lambda message: None),
            crashes=CrashRecord(),
        )  # type: ignore[arg-type]
        begin = worker.predictor.begin

        def counted(pixels_nhwc: Any) -> Any:
            with open(counter, "ab") as file:
                file.write(b"." * len(pixels_nhwc))
            return begin(pixels_nhwc)

        worker.predictor.begin = counted  # type: ignore[method-assign]
        shards = [{"shard": [shard.to_json()]} for shard in todo]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(worker, shards))  # type: ignore[arg-type]
        return 1.0

    segmentation_driver._segment = without_ray  # type: ignore[assignment]
    ray_cluster.connect = no_ray
    ray_cluster.should_use_gpu = lambda *_: False
    ray_cluster.cpus_per_worker = lambda *_: 1
    segmentation_driver.segment_archive(config)


@contextlib.contextmanager
def no_ray() -> Iterator[None]:
    yield


def die_at(step: int, how: str) -> None:
    """Arm the process to die before or after so many steps, or to find the disk full."""
    left = [step]

    def armed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and how == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if left[0] == 0 and how == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            result = function(*arguments, **keywords)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for owner, name in STEPS:
        setattr(owner, name, armed(getattr(owner, name)))


if __name__ == "__main__":
    main(*sys.argv[1:])
