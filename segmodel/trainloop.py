"""What each worker of a training runs."""

import csv
import io
import time
from dataclasses import asdict, astuple, fields, replace

import ray.train
import torch
from fastai.learner import Learner
from ray.train.torch import get_device, prepare_model
from ray.util.queue import Queue

from segmodel import checkpoint, storage
from segmodel.archive import Archive
from segmodel.checkpoint import ModelCard
from segmodel.config import TrainConfig
from segmodel.learner import build_learner
from segmodel.metrics import EpochResult
from segmodel.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelSettings,
    build_model,
    count_parameters,
    load_encoder,
    set_up_cpu,
)
from segmodel.slices import Statistics, load_annotated
from segmodel.splits import Split

THRESHOLD = 0.5
STEP_MESSAGE_SECONDS = 1.0


def run_worker(config: TrainConfig, split: Split, queue: Queue, threads: int | None) -> None:
    """Train, and let the first worker write checkpoints and report.

    Args:
        config: of the training.
        split: the patients of either side.
        queue: where the first worker puts its messages to the driver.
        threads: CPU threads for torch; None leaves its default.
    """
    set_up_cpu(threads)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    archive = Archive(config.archive)
    channels = archive.info.channels
    train_slices = load_annotated(archive, split.train, config.image_size)
    valid_slices = load_annotated(archive, split.valid, config.image_size)
    pretrained = config.arch == "dynamic" and config.encoder_weights == "imagenet" and len(channels) == len(IMAGENET_MEAN)
    statistics = Statistics(IMAGENET_MEAN, IMAGENET_STD) if pretrained else train_slices.statistics()

    torch.manual_seed(config.seed)  # the same weights everywhere
    model_settings = _model_settings(config, len(channels))
    model = build_model(model_settings)
    if config.arch == "dynamic":
        load_encoder(model, config.encoder, config.encoder_weights)
    torch.manual_seed(config.seed * 1000 + rank)  # another augmentation in each worker
    card = ModelCard(
        model=model_settings, channels=channels, image_size=config.image_size, mean=statistics.mean, std=statistics.std,
        threshold=THRESHOLD, training_patients=split.train, metrics={},
    )  # fmt: skip
    steps = config.epochs * (len(train_slices) // config.batch_size)
    writer = _Writer(config, card, queue) if rank == 0 else None
    if writer is not None:
        writer.queue.put({"kind": "start", "steps": steps, "train_slices": len(train_slices), "valid_slices": len(valid_slices),
                          "parameters": count_parameters(model)})  # fmt: skip

    def on_step(step: int, loss: float) -> None:
        if writer is not None:
            writer.step(step, loss)

    def on_epoch(result: EpochResult, learn: Learner) -> None:
        if writer is not None:
            writer.epoch(result, learn)
        ray.train.report(asdict(result))

    model = model.to(get_device()).to(memory_format=torch.channels_last)  # a fifth faster on CPUs, more on GPUs
    learner = build_learner(
        prepare_model(model), train_slices, valid_slices, statistics, batch_size=config.batch_size, rank=rank,
        world_size=world_size, seed=config.seed, on_step=on_step, on_epoch=on_epoch,
    )  # fmt: skip
    with learner.no_logging():
        learner.fit_one_cycle(config.epochs, lr_max=config.lr, wd=config.weight_decay)


def _model_settings(config: TrainConfig, channels: int) -> ModelSettings:
    if config.arch == "dynamic":
        return ModelSettings(arch="dynamic", channels=channels, encoder=config.encoder)
    return ModelSettings(arch="classical", channels=channels, dropout=config.dropout)


class _Writer:
    """The first worker's side: checkpoints, history.csv, and messages to the driver."""

    def __init__(self, config: TrainConfig, card: ModelCard, queue: Queue) -> None:
        self.config, self.card, self.queue = config, card, queue
        self.history: list[EpochResult] = []
        self.last_message = 0.0

    def step(self, step: int, loss: float) -> None:
        """Tell the driver, about once a second."""
        if time.monotonic() - self.last_message >= STEP_MESSAGE_SECONDS:
            self.last_message = time.monotonic()
            self.queue.put({"kind": "step", "step": step, "loss": loss})

    def epoch(self, result: EpochResult, learn: Learner) -> None:
        """Write last/, best/ if it is the best, and history.csv."""
        best = all(result.dice > earlier.dice for earlier in self.history)
        self.history.append(result)
        model = getattr(learn.model, "module", learn.model)
        metrics = {"dice": result.dice, "valid_loss": result.valid_loss, "epoch": float(result.epoch)}
        card = replace(self.card, metrics=metrics)
        state = {"optimizer": learn.opt.state_dict(), "epoch": result.epoch}
        written = checkpoint.save(storage.join(self.config.output, "last"), model, card, state)
        if best:
            checkpoint.save(storage.join(self.config.output, "best"), model, card)
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([field.name for field in fields(EpochResult)])
        rows.writerows(astuple(earlier) for earlier in self.history)
        storage.publish(storage.join(self.config.output, "history.csv"), text.getvalue().encode())
        self.queue.put({"kind": "epoch", "result": asdict(result), "best_sha256": written.weights_sha256 if best else ""})
