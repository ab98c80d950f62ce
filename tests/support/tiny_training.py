"""A training that takes seconds: a tiny network learns bright squares."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from fastai.learner import Learner
from torch import nn

from segmodel.archive.annotations import find_annotated
from segmodel.archive.reader import Archive
from segmodel.core import schema
from segmodel.core.dice import EpochResult, Step
from segmodel.data.dataset import SliceDataset
from segmodel.data.preprocessing import ChannelStatistics
from segmodel.models.unet import ClassicalUnet
from segmodel.settings.training import TrainConfig
from segmodel.training.distributed import WorkerContext
from segmodel.training.learner import build_learner, fit
from tests.support.archive_writer import ArchiveWriter

SIZE, HERE = 32, WorkerContext(0, 1, torch.device("cpu"))


def write_squares(uri: str) -> Archive:
    """Write patients A (16 slices) and B (5): noise up to 60, a 12 x 12 square brighter by 180."""
    generator = np.random.default_rng(0)
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    mask[8:20, 8:20] = 1
    with ArchiveWriter(
        uri, source="test", channels=("a", "b", "c"), intensity_scaling="none", overwrite=False
    ) as writer:
        for patient, count in (("A", 16), ("B", 5)):
            rows = [
                {
                    "slice_id": f"{patient}{n}",
                    "patient_id": patient,
                    "series_id": patient,
                    "slice_index": n,
                    "height": SIZE,
                    "width": SIZE,
                    "mask": mask.tobytes(),
                    "source_uri": "",
                    "pixels": (generator.integers(0, 60, (SIZE, SIZE, 3)) + 180 * mask[..., None])
                    .astype(np.uint8)
                    .tobytes(),
                }
                for n in range(1, count + 1)
            ]
            writer.append(
                pa.Table.from_pylist(rows, schema=schema.ARCHIVE), schema.REJECTS.empty_table()
            )
        writer.close()
    return Archive(uri)


def recipe(**changes: object) -> TrainConfig:
    settings = {
        "archive": "/a",
        "output": "/o",
        "arch": "classical",
        "image_size": SIZE,
        "batch_size": 4,
        "precision": "fp32",  # what is compared here must not depend on the CPU
        "tracking": "none",
    }
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


def learner_of(
    archive: Archive,
    config: TrainConfig,
    model: nn.Module | None = None,
    worker: WorkerContext = HERE,
) -> Learner:
    rows = find_annotated(archive, mixed_sizes=False)
    train, valid = (SliceDataset(archive, rows.of([patient]), SIZE) for patient in ("A", "B"))
    torch.manual_seed(0)
    return build_learner(
        model or ClassicalUnet(3, width=4),
        train,
        valid,
        ChannelStatistics((0.2,) * 3, (0.3,) * 3),
        config,
        worker,
    )


def run(
    learner: Learner,
    config: TrainConfig,
    done: int = 0,
    stop_after: int | None = None,
    on_epoch: Callable[[Learner], None] = lambda learner: None,
) -> tuple[list[Step], list[EpochResult]]:
    """Fit the cycles of the configuration; KeyboardInterrupt after `stop_after` epochs."""
    steps: list[Step] = []
    results: list[EpochResult] = []

    def epoch(result: EpochResult, learn: Learner) -> None:
        results.append(result)
        on_epoch(learn)
        if result.epoch == stop_after:
            raise KeyboardInterrupt

    cycles = tuple((epochs, float(lr)) for epochs, lr in config.cycles)
    try:
        fit(learner, cycles, config, on_step=steps.append, on_epoch=epoch, epochs_done=done)
    except KeyboardInterrupt:
        assert stop_after is not None
    return steps, results
