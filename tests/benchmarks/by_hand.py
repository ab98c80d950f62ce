"""Other ways to segment an archive: by hand, with Ray Data, with fastai; each returns slices/s."""

import queue
import threading
import time
from pathlib import Path

import fastai.callback.progress  # noqa: F401 - gives Learner its no_bar
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch.utils.data import Dataset

from segmodel.archive.reader import Archive
from segmodel.core import schema
from segmodel.core.mask_png import encode_mask
from segmodel.models.checkpoint import ModelCard
from segmodel.models.classes import TUMOR
from tests.benchmarks.stub import predict

GPU = torch.cuda.is_available()
BATCH, SHARD, MODEL_BATCH = 32, 512, 128 if GPU else 16
COLUMNS = [name for name in schema.ARCHIVE.names if name not in ("mask", "source_uri")]


def rate_of(folder: Path) -> float:
    """Slices a second between the first and the last file of a folder."""
    files = sorted(folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    seconds = (files[-1].stat().st_mtime_ns - files[0].stat().st_mtime_ns) / 1e9
    return sum(pq.read_metadata(path).num_rows for path in files[1:]) / seconds


def hand_loop(archive: str, output: Path) -> float:
    """One thread reads row groups, another predicts, encodes and writes files of `SHARD` slices."""
    output.mkdir()
    tables: queue.Queue[pa.Table | None] = queue.Queue(maxsize=2)

    def read() -> None:
        for shard in Archive(archive).shards(SHARD):
            with pq.ParquetFile(f"{archive}/{shard.file}") as file:
                tables.put(
                    file.read_row_groups(
                        range(shard.first_row_group, shard.stop_row_group), columns=COLUMNS
                    )
                )
        tables.put(None)

    reader = threading.Thread(target=read)
    reader.start()
    number = 0
    while (table := tables.get()) is not None:
        height, width = table["height"][0].as_py(), table["width"][0].as_py()
        masks, pixels = [], []
        for start in range(0, table.num_rows, BATCH):
            batch = table.slice(start, BATCH)
            images = np.stack([np.frombuffer(row.as_buffer(), np.uint8) for row in batch["pixels"]])
            prediction = predict(images.reshape(len(batch), height, width, -1))
            masks += [encode_mask(mask_hw) for mask_hw in prediction.mask_nhw]
            pixels += prediction.tumor_pixels_n.tolist()
        done = (
            table.drop_columns(["pixels"])
            .append_column("mask", [masks])
            .append_column("tumor_pixels", [pixels])
        )
        pq.write_table(done, output / f"{number:05d}.parquet", compression="zstd")
        number += 1
    reader.join()
    return rate_of(output)


def idiomatic_pipeline(archive: str, output: Path, slices: int) -> float:
    """The pipeline of Ray Data's documentation, less the time of one batch, which is start-up."""

    def segment(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray | list]:
        shape = (len(batch["pixels"]), batch["height"][0], batch["width"][0], 3)
        images = np.stack([np.frombuffer(row, np.uint8) for row in batch.pop("pixels")]).reshape(
            shape
        )
        prediction = predict(images)
        return batch | {
            "mask": [encode_mask(mask_hw) for mask_hw in prediction.mask_nhw],
            "tumor_pixels": prediction.tumor_pixels_n,
        }

    files = sorted(str(path) for path in Path(archive).glob("*.parquet"))
    few = output.parent / "few.parquet"
    pq.write_table(pq.read_table(files[0]).slice(0, BATCH), few)
    seconds = []
    for paths in ([str(few)], [str(few)], files):
        started = time.monotonic()
        where = str(output / str(len(seconds)))
        ray.data.read_parquet(paths, columns=COLUMNS).map_batches(
            segment, batch_size=BATCH
        ).write_parquet(where)
        seconds.append(time.monotonic() - started)
    return (slices - BATCH) / (seconds[2] - seconds[1])


class Images(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Slices as somebody would give them to fastai."""

    def __init__(self, pixels_nhwc: np.ndarray, card: ModelCard) -> None:
        self.pixels_nhwc, self.card = pixels_nhwc, card

    def __len__(self) -> int:
        return len(self.pixels_nhwc)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        x_chw = torch.tensor(self.pixels_nhwc[number]).permute(2, 0, 1) / 255
        mean, std = torch.tensor(self.card.mean), torch.tensor(self.card.std)
        return (x_chw - mean[:, None, None]) / std[:, None, None], torch.zeros(
            x_chw.shape[1:], dtype=torch.long
        )


def get_preds(network: torch.nn.Module, card: ModelCard, pixels_nhwc: np.ndarray) -> float:
    """Slices a second of fastai's own prediction, masks included."""
    device = torch.device("cuda" if GPU else "cpu")
    loader = DataLoader(Images(pixels_nhwc, card), bs=MODEL_BATCH, num_workers=0, device=device)
    learner = Learner(
        DataLoaders(loader, loader, device=device),
        network.to(device),
        loss_func=CrossEntropyLossFlat(axis=1),
    )
    started = time.monotonic()
    with learner.no_bar(), learner.no_logging():
        probability_nchw, _ = learner.get_preds(dl=loader)
    assert len(probability_nchw[:, TUMOR] > 0.5) == len(pixels_nhwc)
    return len(pixels_nhwc) / (time.monotonic() - started)
