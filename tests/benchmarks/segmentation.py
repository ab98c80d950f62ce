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
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from segmodel.analysis import volumes
from segmodel.archive.reader import Archive, read_shard
from segmodel.archive.slice_format import images
from segmodel.inference.precision import Precision, convert_precision
from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard
from segmodel.models.cpu import set_up_cpu
from segmodel.models.registry import ModelSettings, build_model
from segmodel.runs import run_file, run_folder
from segmodel.runtime import ray_cluster
from segmodel.segmentation import driver as segmentation_driver
from segmodel.segmentation.driver import segment_archive
from segmodel.segmentation.result import SegmentationResult
from segmodel.segmentation.worker import SegmentShards
from segmodel.settings.segment import SegmentConfig
from tests.benchmarks import machine
from tests.benchmarks.archives import tiled, write_planned_archive
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
from tests.benchmarks.meters import GpuBusy, Peak, Timed
from tests.benchmarks.stub import StubSegmentShards
from tests.support import standin

PARTS = ("stub", "model", "memory", "plan")
PLAN_SHARDS = 10_000


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


def with_model(folder: Path, archive: str, slices: int, size: int) -> dict[str, float | str]:
    """DynamicUnet on ResNet34, weights at random; on a GPU where there is one."""
    model = save_dynamic_unet(str(folder / "dynamic"), size)
    network, card = checkpoint.load(model)
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


def save_dynamic_unet(folder: str, size: int) -> str:
    """A checkpoint of a DynamicUnet with random weights; returns its folder."""
    torch.manual_seed(0)
    settings = ModelSettings(arch="dynamic", channels=3, encoder="resnet34")
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
    checkpoint.save(folder, build_model(settings), card)
    return folder


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


def planning(folder: Path) -> float:
    """Seconds to plan an archive of `PLAN_SHARDS` shards."""
    archive = write_planned_archive(folder / "planned", PLAN_SHARDS)
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
