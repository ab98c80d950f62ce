"""python -m tests.benchmarks.ingest [--pairs 3]

Times jobs.ingest on NIfTI and DICOM with one worker and two, against hand-written loops that only
decode and write, and measures the driver's memory for 100 and for 1,000 patients. All on one
machine in one run, which takes 3 GB of the temporary folder; the last line is one JSON object.

Each pair is measured back to back, because others may use the machine. The table gives the median,
the least and the greatest of the pairs' ratios, by the clock and by CPU time. Rates are of whole
calls in a Ray that is warm.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pydicom import dcmread

from segmodel.ingestion.driver import ingest
from segmodel.runtime import ray_cluster
from segmodel.settings.ingest import IngestConfig
from tests.benchmarks.ingest_data import (
    SEQUENCES,
    dicom_patients,
    load_nifti_by_hand,
    nifti_patients,
)

PATIENTS = 160
SHAPES = {"nifti": (192, 192, 96), "dicom": (24, 256, 256)}
MANY = (100, 1_000)


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3, help="repetitions; default 3")
    parser.add_argument("--driver-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.driver_of:
        print(peak_of_driver(*options.driver_of))
        return
    from tests.benchmarks import machine  # imports torch, which the driver of an ingest does not

    print(machine.describe(), flush=True)
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="segmodel-benchmark-") as name:
        folder = Path(name)
        with ray_cluster.connect():
            result |= speed(folder, "nifti", nifti_patients, nifti_by_hand, options.pairs)
            result |= speed(folder, "dicom", dicom_patients, dicom_by_hand, options.pairs)
        result |= memory(folder)
    print(json.dumps(result))


@dataclass(frozen=True)
class Rate:
    """Slices a second of one call."""

    wall: float
    """By the clock: says nothing while others use the machine."""
    cpu: float
    """By the time that its processes had a CPU."""


def speed(
    folder: Path,
    kind: str,
    make: Callable[[Path, int, tuple[int, int, int]], Path],
    by_hand: Callable[[Path, Path], int],
    pairs: int,
) -> dict[str, float]:
    few = make(folder / f"{kind}-few", 2, SHAPES[kind])
    many = make(folder / kind, PATIENTS, SHAPES[kind])
    for _ in range(2):  # starts both workers and warms the disk's cache
        call(folder, kind, few)
    hand, two_hands, one, two = [], [], [], []
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        side_by_side(pool, by_hand, few, folder)
        for _ in range(pairs):
            hand.append(timed(lambda: by_hand(many, folder / "by-hand.parquet")))
            two_hands.append(side_by_side(pool, by_hand, many, folder))
            with one_cpu_taken():
                warm(1)
                one.append(call(folder, kind, many))
            warm(ray_cluster.cpus())
            two.append(call(folder, kind, many))
    for rates, label in ((hand, "loop by hand"), (one, "one worker"), (two, "two workers")):
        wall, cpu = (statistics.median(getattr(rate, n) for rate in rates) for n in ("wall", "cpu"))
        print(
            f"{kind + ', ' + label:36} {wall:10.0f} slices/s, {cpu:.0f} a second of CPU", flush=True
        )
    found = {}
    for name, over, under in (("one_over_hand", one, hand), ("two_over_one", two, one)):
        for clock in ("wall", "cpu"):
            ratios = [
                getattr(a, clock) / getattr(b, clock) for a, b in zip(over, under, strict=True)
            ]
            say(f"{kind}: {name.replace('_', ' ')}, {clock}", ratios)
            found[f"{kind}_{name}_{clock}"] = round(statistics.median(ratios), 3)
    ratios = [both / rate.wall for both, rate in zip(two_hands, hand, strict=True)]
    say(f"{kind}: two loops by hand over one", ratios)
    found[f"{kind}_two_hands_over_one"] = round(statistics.median(ratios), 3)
    return found


def side_by_side(
    pool: ProcessPoolExecutor, by_hand: Callable[[Path, Path], int], scans: Path, folder: Path
) -> float:
    """Slices a second, together, of two loops by hand at once: what the machine has to give."""
    started = time.monotonic()
    outputs = [folder / f"by-hand-{number}.parquet" for number in range(2)]
    return sum(pool.map(by_hand, [scans] * 2, outputs)) / (time.monotonic() - started)


def timed(function: Callable[[], int]) -> Rate:
    """Rates of a function that says how many slices it did."""
    started, before = time.monotonic(), cpu_seconds()
    slices = function()
    seconds = time.monotonic() - started
    used = sum(spent - before.get(process, 0.0) for process, spent in cpu_seconds().items())
    return Rate(slices / seconds, slices / used)


def cpu_seconds() -> dict[int, float]:
    """What this process and each worker of Ray have used so far, by process id."""
    me = psutil.Process()
    used = {}
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            if process == me or "".join(process.cmdline()).startswith("ray::"):
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
    return used


def warm(workers: int) -> None:
    """Start that many workers, so that no start-up is in what is measured."""

    @ray.remote
    def process_id() -> int:
        import nibabel  # noqa: F401
        import pydicom.pixels  # noqa: F401

        import segmodel.ingestion.portion_tasks
        import segmodel.sources.dicom
        import segmodel.sources.nifti  # noqa: F401

        time.sleep(1)
        return os.getpid()

    while len(set(ray.get([process_id.remote() for _ in range(workers)]))) < workers:
        time.sleep(0.2)


def say(label: str, ratios: list[float]) -> None:
    print(
        f"{label:36} {statistics.median(ratios):10.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def call(folder: Path, kind: str, source: Path) -> Rate:
    """One ingest."""
    archive = folder / "archive"
    shutil.rmtree(archive, ignore_errors=True)
    config = IngestConfig(archive=str(archive), format=kind, source=str(source), tracking="none")

    def run() -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            done = ingest(config)
        assert done.left_out == 0
        return done.archive.slices

    return timed(run)


@contextlib.contextmanager
def one_cpu_taken():
    """Occupies all CPUs of Ray but one: the tasks of an ingest run one after another."""

    @ray.remote(num_cpus=ray_cluster.cpus() - 1)
    class Idle:
        def ready(self) -> bool:
            return True

    idle = Idle.remote()
    assert ray.get(idle.ready.remote())
    yield
    ray.kill(idle)


def nifti_by_hand(scans: Path, output: Path) -> int:
    """Decode, scale by the maximum, write; no orientation, no percentiles, no hashes."""
    slices = 0
    for patient in sorted(scans.iterdir()):
        volumes = [
            load_nifti_by_hand(patient / f"{patient.name}_{word}.nii.gz") for word in SEQUENCES
        ]
        labels = load_nifti_by_hand(patient / f"{patient.name}_seg.nii.gz")
        scaled = [(volume * (255 / volume.max())).astype(np.uint8) for volume in volumes]
        pixels_dhwc = np.stack(scaled, axis=-1).transpose(2, 1, 0, 3)
        masks_dhw = (labels > 0).astype(np.uint8).transpose(2, 1, 0)
        write(output, pixels=pixels_dhwc, mask=masks_dhw)
        slices += len(pixels_dhwc)
    return slices


def dicom_by_hand(scans: Path, output: Path) -> int:
    """The same of series whose folders are known; no file is read twice."""
    slices = 0
    for patient in sorted(scans.iterdir()):
        scaled = []
        for word in SEQUENCES:
            images = [dcmread(path) for path in (patient / word).iterdir()]
            images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
            volume = np.stack([image.pixel_array for image in images])
            scaled.append((volume * (255 / volume.max())).astype(np.uint8))
        pixels_dhwc = np.stack(scaled, axis=-1)
        write(output, pixels=pixels_dhwc)
        slices += len(pixels_dhwc)
    return slices


def write(output: Path, **columns: np.ndarray) -> None:
    table = pa.table({name: [one.tobytes() for one in values] for name, values in columns.items()})
    pq.write_table(table, output, compression="zstd", row_group_size=64)


def memory(folder: Path) -> dict[str, float]:
    """Peak memory of the driver, a process of its own for each number of patients."""
    found = {}
    for kind in ("nifti", "dicom"):
        peaks = []
        for patients in MANY:
            own = folder / f"{kind}-{patients}"
            if kind == "nifti":
                scans = nifti_patients(own, patients, (32, 32, 8))
            else:
                scans = dicom_patients(own, patients, (8, 32, 32), ("flair",))
            command = [sys.executable, "-m", "tests.benchmarks.ingest", "--driver-of", kind]
            done = subprocess.run(
                [*command, str(scans)], capture_output=True, text=True, check=True
            )
            peaks.append(float(done.stdout.split()[-1]))
            label = f"{kind}: driver, {patients} patients"
            print(f"{label:36} {peaks[-1]:10.0f} MB", flush=True)
            shutil.rmtree(own)
        found[f"{kind}_driver_memory_10x_over_1x"] = round(peaks[1] / peaks[0], 3)
    return found


def peak_of_driver(kind: str, scans: str) -> float:
    """Megabytes of this process at most while it ingests."""
    with tempfile.TemporaryDirectory() as name, ray_cluster.connect():
        call(Path(name), kind, Path(scans))
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


if __name__ == "__main__":
    main()
