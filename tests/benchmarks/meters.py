"""Meters that run beside a benchmark: time in a function, GPU utilisation, peak memory."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa


class Timed:
    """A function and the time spent in it."""

    def __init__(self, function: Callable[..., pa.Table]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: object) -> pa.Table:
        started = time.monotonic()
        try:
            return self.function(*arguments)
        finally:
            self.seconds += time.monotonic() - started


class GpuBusy:
    """Share of samples, ten a second, in which the GPU runs a kernel."""

    def __enter__(self) -> "GpuBusy":
        command = [
            "nvidia-smi",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            "--loop-ms=100",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.seen: list[tuple[float, float]] = []
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.thread.join()

    def _sample(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append((time.time(), float(line) / 100))

    def share(self, folder: Path) -> float:
        """The share between the first and the last file of a folder."""
        times = [path.stat().st_mtime for path in folder.glob("*.parquet")]
        within = [share for when, share in self.seen if min(times) <= when <= max(times)]
        return sum(within) / len(within)


class Peak:
    """Peak memory of this process and Ray's workers together, sampled a few times a second."""

    def __enter__(self) -> "Peak":
        self.megabytes, self.stop = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _sample(self) -> None:
        while not self.stop.wait(0.2):
            total = sum(private_bytes(process) for process in self._processes())
            self.megabytes = max(self.megabytes, total / 2**20)

    def _processes(self) -> Iterator[psutil.Process]:
        me = psutil.Process()
        yield me
        for process in me.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "".join(process.cmdline()).startswith("ray::"):
                    yield process


def private_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        info = process.memory_info()
        return int(info.rss - info.shared)
    return 0
