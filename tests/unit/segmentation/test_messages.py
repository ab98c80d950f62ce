"""What the workers of a segmentation tell the driver, and how often."""

from types import SimpleNamespace
from typing import Any

import pytest

from segmodel.archive.reader import Shard
from segmodel.runtime.tracker import Tracker
from segmodel.segmentation.console import Console
from segmodel.segmentation.messages import GpuFailed, ShardProgress, WorkerDied, WorkerFailed
from segmodel.segmentation.worker import Report

SHARD = Shard("part-00000.parquet", 0, 8, 512)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_shard_is_reported_every_five_seconds_and_at_its_end() -> None:
    sent: list[Any] = []
    clock = Clock()
    report = Report(SimpleNamespace(put=sent.append), SHARD, clock)  # type: ignore[arg-type]
    for second in range(1, 13):
        clock.now = second
        report.more(32)
    report.done(512, 3)
    assert sent == [
        ShardProgress(SHARD.name, 5 * 32, 0),
        ShardProgress(SHARD.name, 10 * 32, 0),
        ShardProgress(SHARD.name, 512, 3),
    ]


def test_the_driver_counts_a_repeated_shard_once_and_keeps_the_first_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watch = Console([SHARD], Tracker())
    watch.handle(ShardProgress(SHARD.name, 320, 0))
    watch.handle(WorkerDied(SHARD.name, 2))
    watch.handle(GpuFailed("ECC error", "node-7"))
    watch.handle(ShardProgress(SHARD.name, 64, 0))
    assert watch.progress.done == 64
    watch.handle(ShardProgress(SHARD.name, 512, 3))
    watch.handle(WorkerFailed("disk full", "node-7"))
    watch.handle(WorkerFailed("closed", "node-8"))
    assert (watch.progress.done, watch.quarantined) == (512, 3)
    assert watch.failure == "disk full (on node node-7)"
    printed = capsys.readouterr().out
    assert f"shard {SHARD.name}: its worker died; attempt 2" in printed
    assert "a GPU of node-7 failed" in printed
