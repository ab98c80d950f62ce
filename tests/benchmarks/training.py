"""python -m tests.benchmarks.training [--image-size 96] [--encoder resnet18] [--only fastai]
[--slices 256 | --archive URI] [--batch-size 16]

Times jobs.train against what a user of fastai would write: the same network, batch size,
learning-rate schedule and kind of augmentation, from PNG files on a local disk, in fp32 without
channels-last. Ratios are of one run on one machine; the last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from segmodel.archive.annotations import find_annotated
from segmodel.archive.reader import Archive, read_shard
from segmodel.archive.slice_format import image
from segmodel.core.dice import EpochResult
from segmodel.data.augmentation import Augmentation
from segmodel.data.dataset import SliceDataset
from segmodel.data.loader import Loader
from segmodel.data.sampling import TrainSampler
from segmodel.data.splits import split_patients
from segmodel.ingestion.driver import ingest
from segmodel.runtime import ray_cluster
from segmodel.settings.ingest import IngestConfig
from segmodel.settings.training import TrainConfig
from segmodel.sources.phantom import FLAIR
from segmodel.training.callbacks import PrepareBatch
from segmodel.training.driver import TrainingResult, train
from tests.benchmarks import machine

PATIENT_SLICES = 32
EPOCHS = 3
PARTS = ("fastai", "two", "input")
"""What the job of one worker is compared with."""


def main() -> None:
    """Print the table and the JSON line."""
    options = _options()
    parts = options.only
    print(machine.describe(), flush=True)
    with tempfile.TemporaryDirectory(prefix="segmodel-benchmark-") as folder, ray_cluster.connect():
        uri = options.archive or _phantoms(f"{folder}/archive", options)
        archive = Archive(uri)
        print(
            f"{archive.info.slices} slices of {options.image_size}x{options.image_size}, "
            f"{options.encoder}, "
            f"batch {options.batch_size}, {EPOCHS} epochs, the first not counted",
            flush=True,
        )
        one = _job(uri, f"{folder}/one", options, "1", "memory")
        rate = _rate(one.history)
        print(
            f"{'jobs.train, 1 worker':32} {rate:8.1f} slices/s, peak {one.peak_memory_mb:.0f} MB",
            flush=True,
        )
        result = {"peak_memory_mb": round(one.peak_memory_mb)}
        if "fastai" in parts:
            _write_png(archive, Path(folder) / "png")
            fastai = _fastai_loop(f"{folder}/png", options)
            print(f"{'fastai by hand':32} {fastai:8.1f} slices/s", flush=True)
            result["job_over_fastai"] = round(rate / fastai, 3)
        if "two" in parts and torch.cuda.device_count() != 1:
            result["two_workers_over_one"] = round(_two_workers(uri, folder, options) / rate, 3)
        if "input" in parts:
            inputs = _input_path(archive, options)
            print(f"{'input path alone, streamed':32} {inputs:8.1f} slices/s", flush=True)
            result["input_over_step"] = round(inputs / rate, 2)
    print(json.dumps(result))


def _two_workers(uri: str, folder: str, options: argparse.Namespace) -> float:
    """Slices a second."""
    rate = _rate(_job(uri, f"{folder}/two", options, "2", "memory").history)
    print(f"{'jobs.train, 2 workers':32} {rate:8.1f} slices/s", flush=True)
    if not torch.cuda.is_available():
        print(
            f"two workers share the {os.cpu_count()} CPUs that one has: ideal is 1, with twice the "
            "CPUs or GPUs it would be 2"
        )
    return rate


def _phantoms(uri: str, options: argparse.Namespace) -> str:
    patients = max(5, options.slices // PATIENT_SLICES)
    ingest(
        IngestConfig(
            archive=uri,
            format="phantom",
            phantom_patients=patients,
            phantom_slices=PATIENT_SLICES,
            phantom_size=options.image_size,
            tracking="none",
        )
    )
    return uri


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--slices", type=int, default=256)
    parser.add_argument(
        "--archive", help="one with masks, instead of phantoms; its slices are --image-size wide"
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="auto")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="beside one worker; default: all"
    )
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def _write_png(archive: Archive, folder: Path) -> None:
    """Training images and masks as PNG, the way a user of fastai has them."""
    from PIL import Image

    for name in ("train", "masks"):
        (folder / name).mkdir(parents=True)
    for shard in archive.shards(target_slices=1):
        table = read_shard(archive.uri, shard)
        columns = (table[name] for name in ("slice_id", "height", "width", "pixels", "mask"))
        for slice_id, height, width, pixels, mask in zip(*columns, strict=True):
            h, w = height.as_py(), width.as_py()
            Image.fromarray(image(pixels, h, w, 3)).save(folder / "train" / f"{slice_id}.png")
            Image.fromarray(image(mask, h, w, 1)[..., 0]).save(folder / "masks" / f"{slice_id}.png")


def _fastai_loop(folder: str, options: argparse.Namespace) -> float:
    """Slices a second of the training steps, in a process of its own."""
    numbers = [str(number) for number in (options.image_size, options.batch_size, EPOCHS)]
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.fastai_loop",
        folder,
        options.encoder,
        *numbers,
    ]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return statistics.median(json.loads(finished.stdout.splitlines()[-1])[1:])


def _job(
    uri: str, output: str, options: argparse.Namespace, workers: str, data: str
) -> TrainingResult:
    return train(
        TrainConfig(
            archive=uri,
            output=output,
            encoder=options.encoder,
            encoder_weights="none",
            image_size=options.image_size,
            batch_size=options.batch_size,
            epochs=EPOCHS,
            lr=1e-3,
            workers=workers,
            data=data,
            tracking="none",
            precision=options.precision,
            compile=options.compile,
        )  # type: ignore[arg-type]
    )


def _rate(history: tuple[EpochResult, ...]) -> float:
    return statistics.median(result.slices_per_second for result in history[1:])


def _input_path(archive: Archive, options: argparse.Namespace) -> float:
    """Slices a second from Parquet to the network's input, read anew in every epoch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = find_annotated(archive, mixed_sizes=False)
    train_rows = rows.of(split_patients(rows.patients, 0).train)
    slices = SliceDataset(archive, train_rows, options.image_size, cached_groups=2)
    augmentation = Augmentation(15.0, 1.0, 1.3, 0.25, FLAIR)
    prepare = PrepareBatch(
        slices.statistics(), augmentation, torch.nn.Identity(), torch.channels_last, device
    )
    prepare.learn = argparse.Namespace(training=True)
    sampler = TrainSampler(train_rows.shard_n, options.batch_size, 1, 0, 1, 0, slices.cached_groups)
    loader = Loader(slices, sampler, device, prepare.random_numbers)
    count, started = 0, time.monotonic()
    for sampler.epoch in range(5):
        for pixels_nhwc, mask_nhw, rows_n, random_nk in loader:
            prepare.learn.xb, prepare.learn.yb = (pixels_nhwc, mask_nhw), (rows_n, random_nk)
            prepare.before_batch()
            count += len(rows_n)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count / (time.monotonic() - started)


if __name__ == "__main__":
    main()
