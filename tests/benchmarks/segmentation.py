"""python -m tests.benchmarks.segmentation [--quick] [--only model]

Times jobs.segment against hand-written loops and against its own network, all on one machine in one
run. The last line is one JSON object of ratios. Rates count from the first shard on, without
start-up, which is given separately.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from segmodel.analysis import volumes
from segmodel.archive.reader import Archive, read_shard
from segmodel.archive.slice_format import images
from segmodel.core import schema
from segmodel.inference.precision import Precision, convert_precision
from segmodel.ingestion.driver import ingest
from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard
from segmodel.models.cpu import set_up_cpu
from segmodel.models.registry import ModelSettings, build_model
from segmodel.runs import run_file, run_folder
from segmodel.runtime import ray_cluster
from segmodel.segmentation import driver as segmentation_driver
from segmodel.segmentation.driver import SegmentationResult, segment_archive
from segmodel.segmentation.worker import SegmentShards
from segmodel.settings.ingest import IngestConfig
from segmodel.settings.segment import SegmentConfig
from tests.benchmarks import machine
from tests.benchmarks.by_hand import (
    BATCH,
    GPU,
    MODEL_BATCH,
    SHARD,
    get_preds,
    hand_loop,
    idiomatic_pipeline,
    rate_of,
)
from tests.benchmarks.stub import StubSegmentShards
from tests.support import archive_writer, scans, standin

PARTS = ("stub", "model", "memory", "plan")
PLAN_SHARDS, FILE_SHARDS = 10_000, 8


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smaller run of the same, in minutes"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="these parts alone; default: all"
    )
    options = parser.parse_args()
    quick, parts = options.quick, options.only
    slices, size, model_slices = (6_000, 128, 96) if quick else (30_000, 256, 320)
    print(machine.describe(), flush=True)
    with tempfile.TemporaryDirectory(prefix="segmodel-benchmark-") as name, ray_cluster.connect():
        ray_cluster.configure_ray_data()
        folder = Path(name)
        result: dict[str, float | str] = {}
        if "stub" in parts or (GPU and "model" in parts):
            archive = tiled(folder / "archive", slices, size)
        if "stub" in parts:
            print(f"{slices} slices of {size}x{size}, a stub for the network", flush=True)
            result |= with_stub(folder, archive, slices, size)
        if "model" in parts:
            if not GPU:
                slices = model_slices
                archive = tiled(folder / "model-archive", slices, size)
            result |= with_model(folder, archive, slices, size)
        if "memory" in parts:
            result |= memory(folder, 500 if quick else 1_500, size)
        if "plan" in parts:
            result["plan_10000_shards_s"] = round(planning(folder), 2)
    print(json.dumps(result))


def tiled(
    folder: Path, slices: int, size: int, patients: int = 4, patient_slices: int = 160
) -> str:
    """An archive of a few phantoms under ever new names."""
    few = folder.parent / f"phantoms-{size}-{patient_slices}"
    if not few.exists():
        ingest(
            IngestConfig(
                archive=str(few),
                format="phantom",
                phantom_patients=patients,
                phantom_slices=patient_slices,
                phantom_size=size,
                tracking="none",
            )
        )
    table = pq.read_table(scans.files(few)[0])
    with archive_writer.ArchiveWriter(
        str(folder),
        source="benchmark",
        channels=standin.CHANNELS,
        intensity_scaling="none",
        overwrite=False,
    ) as writer:
        for number in range(-(-slices // patient_slices)):
            patient = f"P{number:06d}"
            count = min(patient_slices, slices - number * patient_slices)
            rows = table.slice(number % patients * patient_slices, count)
            for column, values in (
                ("slice_id", [f"{patient}_{index}" for index in range(count)]),
                ("patient_id", [patient] * count),
                ("series_id", [patient] * count),
            ):
                rows = rows.set_column(
                    rows.schema.get_field_index(column), rows.schema.field(column), pa.array(values)
                )
            writer.append(rows, schema.REJECTS.empty_table())
        writer.close()
    return str(folder)


@dataclass(frozen=True)
class Job:
    """What a job did and how long it took."""

    result: SegmentationResult
    seconds: float
    volume_seconds: float
    """Of those, in the volume stage."""

    def say_volume_share(self, network: str) -> float:
        share = self.volume_seconds / self.seconds
        print(
            f"{'volume stage':36} {self.volume_seconds:10.2f} s, "
            f"{share:.1%} of the job with {network}",
            flush=True,
        )
        return round(share, 4)


def job(
    archive: str,
    model: str,
    output: Path,
    worker: type[SegmentShards],
    **settings: int | str | bool,
) -> Job:
    """jobs.segment without its printing."""
    kept, segmentation_driver.SegmentShards = segmentation_driver.SegmentShards, worker  # type: ignore[misc]
    timed = volumes.summarise = Timed(volumes.summarise)
    started = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            config = {"shard_slices": SHARD, "batch_size": BATCH} | settings
            result = segment_archive(
                SegmentConfig(
                    archive=archive, checkpoint=model, output=str(output), tracking="none", **config
                )  # type: ignore[arg-type]
            )
    finally:
        segmentation_driver.SegmentShards, volumes.summarise = kept, timed.function  # type: ignore[misc]
    return Job(result, time.monotonic() - started, timed.seconds)


def with_stub(folder: Path, archive: str, slices: int, size: int) -> dict[str, float]:
    model = standin.save(str(folder / "stub"), size)
    by_hand = hand_loop(archive, folder / "by-hand")
    print(f"{'two threads by hand':36} {by_hand:10.0f} slices/s", flush=True)
    done = job(archive, model, folder / "job", StubSegmentShards, cpu=True)
    rate = rate_of(folder / "job" / "masks")
    print(
        f"{'jobs.segment':36} {rate:10.0f} slices/s, and {done.seconds - slices / rate:.1f} s of "
        "start-up and end",
        flush=True,
    )
    idiomatic = idiomatic_pipeline(archive, folder / "idiomatic", slices)
    print(f"{'read_parquet, map_batches, write':36} {idiomatic:10.0f} slices/s", flush=True)
    share = done.say_volume_share("a stub")
    assert done.result.counts.segmented == slices
    return {
        "stub_over_hand_loop": round(rate / by_hand, 3),
        "stub_over_idiomatic": round(rate / idiomatic, 2),
        "volume_stage_share": share,
    }


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


def with_model(folder: Path, archive: str, slices: int, size: int) -> dict[str, float | str]:
    """DynamicUnet on ResNet34, weights at random; on a GPU where there is one."""
    torch.manual_seed(0)
    settings = ModelSettings(arch="dynamic", channels=3, encoder="resnet34")
    network = build_model(settings).eval()
    card = ModelCard(
        model=settings,
        channels=standin.CHANNELS,
        image_size=size,
        mean=(0.2,) * 3,
        std=(0.2,) * 3,
        threshold=0.5,
        training_patients=(),
        validation_patients=(),
        metrics={},
    )
    model = str(folder / "dynamic")
    checkpoint.save(model, network, card)
    print(f"{slices} slices of {size}x{size}, DynamicUnet on ResNet34", flush=True)
    how = {"gpu": True, "compile": "on"} if GPU else {"cpu": True, "shard_slices": 64}
    with GpuBusy() if GPU else contextlib.nullcontext() as busy:
        done = job(
            archive, model, folder / "model-job", SegmentShards, batch_size=MODEL_BATCH, **how
        )
    rate = rate_of(folder / "model-job" / "masks")
    print(f"{'jobs.segment':36} {rate:10.2f} slices/s", flush=True)
    done.say_volume_share("DynamicUnet")
    precision = run_file.read(str(folder / "model-job")).fingerprint.precision
    print(f"{'precision':36} {precision:>10}", flush=True)
    result: dict[str, float | str] = {"precision": precision}
    if busy is not None:
        share = busy.share(folder / "model-job" / "masks")
        result["gpu_busy_share"] = round(share, 3)
        print(f"{'GPU busy':36} {share:10.1%}", flush=True)
    shard = next(iter(Archive(archive).shards(2048 if GPU else max(64, slices // 2))))
    pixels_nhwc = images(read_shard(archive, shard)["pixels"], size, size, 3)
    resources = {"max_calls": 1} | (
        {"num_gpus": 1}
        if GPU
        else {"num_cpus": os.cpu_count(), "runtime_env": ray_cluster.KEEP_FREED_MEMORY}
    )
    passed = 20_000 if GPU else len(pixels_nhwc)
    bare = ray.get(ray.remote(**resources)(bare_forward).remote(model, passed, precision))
    print(f"{'bare forward pass':36} {bare:10.2f} slices/s", flush=True)
    fastai = get_preds(network, card, pixels_nhwc)
    print(f"{'fastai get_preds':36} {fastai:10.2f} slices/s", flush=True)
    return result | {
        "model_over_forward": round(rate / bare, 3),
        "model_over_get_preds": round(rate / fastai, 2),
    }


def bare_forward(model: str, slices: int, precision: Precision) -> float:
    """The network alone, as the job runs it, in a worker like the job's, on data in memory."""
    set_up_cpu(os.cpu_count())
    network, card = checkpoint.load(model)
    device = torch.device("cuda" if GPU else "cpu")
    network = convert_precision(network.to(device), precision, device)
    network = network.to(memory_format=torch.channels_last).eval()
    forward = torch.compile(network, dynamic=False) if GPU else network
    x_nchw = torch.randn(MODEL_BATCH, 3, card.image_size, card.image_size, device=device)
    x_nchw = x_nchw.to(memory_format=torch.channels_last)
    if precision == "bf16" and not GPU:
        x_nchw = x_nchw.to(torch.bfloat16)
    autocast = torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=GPU and precision == "bf16"
    )
    passes = slices // MODEL_BATCH
    with torch.inference_mode(), autocast:
        forward(x_nchw).cpu()
        started = time.monotonic()
        for _ in range(passes):
            last = forward(x_nchw)
        last.cpu()
    return passes * MODEL_BATCH / (time.monotonic() - started)


class GpuBusy:
    """How often the driver finds a kernel running, looked at ten times a second."""

    def __enter__(self) -> "GpuBusy":
        command = [
            "nvidia-smi",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            "--loop-ms=100",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.seen: list[tuple[float, float]] = []
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.thread.join()

    def _look(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append((time.time(), float(line) / 100))

    def share(self, folder: Path) -> float:
        """Of the time between the first and the last file of a folder."""
        times = [path.stat().st_mtime for path in folder.glob("*.parquet")]
        within = [share for when, share in self.seen if min(times) <= when <= max(times)]
        return sum(within) / len(within)


def memory(folder: Path, slices: int, size: int) -> dict[str, float]:
    """Peak memory of the job's processes over archives of growing size."""
    model, peaks = standin.save(str(folder / "stub"), size), []
    for times in (1, 4, 16):
        archive = tiled(folder / f"archive-{times}", times * slices, size)
        with Peak() as peak:
            job(archive, model, folder / f"job-{times}", StubSegmentShards, cpu=True)
        shutil.rmtree(archive)
        peaks.append(peak.megabytes)
        print(f"{f'peak memory, {times * slices} slices':36} {peak.megabytes:10.0f} MB", flush=True)
    return {"memory_16x_over_1x": round(peaks[-1] / peaks[0], 2)}


class Peak:
    """Peak memory of this process and Ray's workers together, sampled a few times a second."""

    def __enter__(self) -> "Peak":
        self.megabytes, self.stop = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _look(self) -> None:
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


def planning(folder: Path) -> float:
    """Seconds to plan an archive of `PLAN_SHARDS` shards, whose files are links to one."""
    archive = folder / "planned"
    rows = FILE_SHARDS * SHARD
    light = {
        name: pa.array([""] * rows)
        if pa.types.is_string(field.type)
        else pa.nulls(rows, field.type)
        for name, field in ((field.name, field) for field in schema.ARCHIVE)
    }
    archive.mkdir()
    pq.write_table(pa.table(light), archive / "part-00000.parquet", row_group_size=64)
    files = PLAN_SHARDS // FILE_SHARDS
    for number in range(1, files):
        os.link(archive / "part-00000.parquet", archive / f"part-{number:05d}.parquet")
    info = {
        "format_version": schema.FORMAT_VERSION,
        "archive_id": "planned",
        "source": "benchmark",
        "channels": list(standin.CHANNELS),
        "intensity_scaling": "none",
        "patients": 1,
        "slices": files * rows,
        "annotated_slices": 0,
        "rejects": 0,
        "files": {f"part-{number:05d}.parquet": rows for number in range(files)},
    }
    (archive / "archive.json").write_text(json.dumps(info))
    started = time.monotonic()
    work = run_folder.find_work(
        str(folder / "planned-run"),
        Archive(str(archive), skip_damaged=True),
        SHARD,
        retry_failed=False,
    )
    seconds = time.monotonic() - started
    assert len(work.todo) == PLAN_SHARDS
    print(f"{'planning 10,000 shards':36} {seconds:10.2f} s", flush=True)
    return seconds


if __name__ == "__main__":
    main()
