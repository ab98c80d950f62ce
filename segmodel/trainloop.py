"""What each worker of a training or of a learning-rate range test runs."""

import csv
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import psutil
import ray.train
import torch
from fastai.learner import Learner
from ray.train.torch import get_device, prepare_model
from ray.util.queue import Queue
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segmodel import checkpoint, figures, storage
from segmodel.annotated import SliceRows
from segmodel.archive import Archive, shown_channel
from segmodel.checkpoint import ModelCard, TrainerState
from segmodel.config import FindLrConfig, RecipeConfig, TrainConfig
from segmodel.errors import ConfigError, SegmodelError, TrainingError
from segmodel.figures import Sample
from segmodel.learner import MEMORY_FORMATS, Cycles, Place, Step, build_learner, fit, optimizer_state, restore_optimizer
from segmodel.losses import sum_over_workers
from segmodel.lr_finder import RangeTest, range_test
from segmodel.metrics import EpochResult, best_epoch
from segmodel.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelSettings,
    activation_bytes,
    build_model,
    count_parameters,
    load_encoder,
    set_up_cpu,
)
from segmodel.predictor import Predictor
from segmodel.slices import Slices, Statistics
from segmodel.splits import Split

THRESHOLD = 0.5
STEP_MESSAGE_SECONDS = 1.0
STREAMED_GROUPS = 64
"""Row groups that a worker keeps while it streams: slices are shuffled over as many, 4,096 slices in all."""
SHOWN_SAMPLES = 12
AUTO_LR_MIN, AUTO_LR_MAX, AUTO_STEPS = FindLrConfig.lr_min, FindLrConfig.lr_max, FindLrConfig.steps


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What the driver tells every worker."""

    config: RecipeConfig
    rows: SliceRows
    """All annotated slices of the archive."""
    split: Split
    queue: Queue
    """Where messages to the driver go."""
    threads: int | None
    """CPU threads for torch; None leaves its default."""


@dataclass(frozen=True)
class _Worker:
    task: WorkerTask
    place: Place
    learner: Learner
    train: Slices
    valid: Slices
    card: ModelCard
    state: TrainerState | None

    @property
    def first(self) -> bool:
        return self.place.rank == 0


def run_training(task: WorkerTask) -> None:
    """Train, from the last whole epoch if there is one; the first worker writes checkpoints and reports.

    An error that all workers meet alike goes to the driver, which raises it, and the worker ends in peace: Ray Train restarts
    workers that fail, which would not help here.
    """
    assert isinstance(task.config, TrainConfig)  # noqa: S101 - the driver gave it
    try:
        worker = _set_up(task, resume=True)
        cycles = worker.state.cycles if worker.state else _resolve_cycles(worker, task.config)
    except SegmodelError as error:
        task.queue.put({"kind": "error", "error": error})
        return
    writer = _Writer(worker, cycles) if worker.first else None
    try:
        fit(
            worker.learner, cycles, task.config, worker.place, epochs_done=worker.state.epochs_done if worker.state else 0,
            on_step=writer.step if writer else _ignore, on_epoch=writer.epoch if writer else _ignore,
        )  # fmt: skip
    except TrainingError as error:
        task.queue.put({"kind": "error", "error": error})
        return
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"the GPU's memory is too small ({error}): {_SMALLER}") from error
    if writer is not None:
        writer.finish()


def run_range_test(task: WorkerTask) -> None:
    """The learning-rate range test alone; the first worker writes its results."""
    config = task.config
    assert isinstance(config, FindLrConfig)  # noqa: S101 - the driver gave it
    try:
        worker = _set_up(task, resume=False)
        _range_test(worker, config.lr_min, config.lr_max, config.steps)
    except SegmodelError as error:
        task.queue.put({"kind": "error", "error": error})


def _set_up(task: WorkerTask, resume: bool) -> _Worker:
    set_up_cpu(task.threads)
    config, context = task.config, ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), get_device())
    archive = Archive(config.archive)
    channels = archive.info.channels
    torch.manual_seed(config.seed)  # the same weights everywhere
    settings = _model_settings(config, len(channels))
    model = build_model(settings)
    _check_memory(config, settings, place, context.get_local_world_size())
    train, valid, streamed = _open_slices(task, archive, context.get_local_world_size())
    last = storage.join(config.output, "last")
    state = None
    if resume and storage.exists(storage.join(last, checkpoint.TRAINER)):
        state = checkpoint.load_trainer(last)
        model.load_state_dict(state.weights)
        statistics = Statistics(state.mean, state.std)
    else:
        pretrained = config.arch == "dynamic" and config.encoder_weights == "imagenet" and len(channels) == len(IMAGENET_MEAN)
        if config.arch == "dynamic":
            load_encoder(model, config.encoder, config.encoder_weights)
        statistics = Statistics(IMAGENET_MEAN, IMAGENET_STD) if pretrained else train.statistics()
    card = ModelCard(
        model=settings, channels=channels, image_size=config.image_size, mean=statistics.mean, std=statistics.std,
        threshold=THRESHOLD, training_patients=task.split.train, metrics={},
    )  # fmt: skip
    if place.rank == 0:
        task.queue.put({
            "kind": "data", "train_slices": len(train), "valid_slices": len(valid), "parameters": count_parameters(model),
            "workers": place.world_size, "device": str(place.device), "streamed": streamed,
            "each": [len(part) for part in np.array_split(np.arange(config.batch_size // config.accumulate), place.world_size)],
        })  # fmt: skip
    if state is None and place.rank == 0:
        _show_samples(train, config)
    learner = build_learner(_placed(model, config, place), train, valid, statistics, config, place)
    if state is not None:
        restore_optimizer(learner, state.optimizer)
    return _Worker(task, place, learner, train, valid, card, state)


def _placed(model: nn.Module, config: RecipeConfig, place: Place) -> nn.Module:
    """The network on its device, as the flags want it, wrapped if there are several workers."""
    model = model.to(place.device).to(memory_format=MEMORY_FORMATS[config.memory_format])
    if config.sync_batchnorm and place.world_size > 1:
        if place.device.type != "cuda":
            raise ConfigError("--sync-batchnorm works on GPUs only: leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if config.compile:
        model.compile()
    # Ray Train compares every parameter's strides with the first worker's, as DDP does: set the memory format before.
    return prepare_model(model)


def _model_settings(config: RecipeConfig, channels: int) -> ModelSettings:
    if config.arch == "dynamic":
        return ModelSettings(arch="dynamic", channels=channels, encoder=config.encoder)
    return ModelSettings(arch="classical", channels=channels, dropout=config.dropout, width=config.width)


_SMALLER = "give a smaller --batch-size or --image-size, or spread the batch over more passes with --accumulate"


def _check_memory(config: RecipeConfig, settings: ModelSettings, place: Place, local_workers: int) -> None:
    """What a pass keeps for its gradient must fit into memory; all workers agree on whether it does."""
    slices = -(-config.batch_size // (place.world_size * config.accumulate))
    needed = slices * activation_bytes(settings, config.image_size)
    if place.device.type == "cuda":
        memory = torch.cuda.mem_get_info(place.device)[1]
        needed = needed if config.precision == "fp32" else needed * 6 // 10  # most of it is half as wide under autocast
    else:
        memory = psutil.virtual_memory().total // local_workers
    if sum_over_workers([float(needed > memory)])[0] > 0:
        raise ConfigError(
            f"--image-size {config.image_size}, --batch-size {config.batch_size}: {slices} slices in one pass of a worker take "
            f"about {needed / 2**30:.0f} GiB, and there are {memory / 2**30:.0f} GiB; {_SMALLER}"
        )


def _open_slices(task: WorkerTask, archive: Archive, local_workers: int) -> tuple[Slices, Slices, bool]:
    """Training and validation slices, and whether they are streamed; all workers do the same."""
    config = task.config
    train = Slices(archive, task.rows.of(task.split.train), config.image_size)
    valid = Slices(archive, task.rows.of(task.split.valid), config.image_size)
    needed = (len(train) + len(valid)) * train.bytes_a_slice * local_workers
    too_large = sum_over_workers([float(needed > psutil.virtual_memory().available / 2)])[0] > 0
    if config.data == "stream" or (config.data == "auto" and too_large):
        train = Slices(archive, train.rows, config.image_size, keep_groups=STREAMED_GROUPS)
        valid = Slices(archive, valid.rows, config.image_size, keep_groups=2)
        return train, valid, True
    if too_large and needed > psutil.virtual_memory().available:
        raise ConfigError(
            f"--data memory: the slices take {needed / 2**30:.0f} GiB on a machine that has "
            f"{psutil.virtual_memory().available / 2**30:.0f} GiB left; give --data stream"
        )
    train.load()
    valid.load()
    return train, valid, False


def _resolve_cycles(worker: _Worker, config: TrainConfig) -> Cycles:
    found = None
    if any(lr == "auto" for _, lr in config.cycles):
        found = _range_test(worker, AUTO_LR_MIN, AUTO_LR_MAX, AUTO_STEPS).suggestion
    return tuple((epochs, found if found is not None and lr == "auto" else float(lr)) for epochs, lr in config.cycles)


def _range_test(worker: _Worker, lr_min: float, lr_max: float, steps: int) -> RangeTest:
    config, queue = worker.task.config, worker.task.queue
    if worker.first:
        queue.put({"kind": "range_test_begins", "steps": steps})

    def on_step(step: int) -> None:
        if worker.first:
            queue.put({"kind": "range_test_step", "step": step})

    found = range_test(worker.learner, config, worker.place, lr_min=lr_min, lr_max=lr_max, steps=steps, on_step=on_step)
    if worker.first:
        columns = zip(found.lrs, found.losses, found.smoothed, strict=True)
        rows = [{"lr": lr, "loss": loss, "smoothed_loss": smoothed} for lr, loss, smoothed in columns]
        storage.publish_csv(storage.join(config.output, "lr_find.csv"), rows)
        picture = _figure(config, "lr_find.png")
        figures.range_test_curve(found.lrs, found.losses, found.smoothed, found.suggestion, picture)
        queue.put({"kind": "range_test_done", "rows": rows, "suggestion": found.suggestion})
    return found


def peak_memory_mb(place: Place) -> float:
    """Most memory that this worker has had so far: of its GPU, or of its process."""
    if place.device.type == "cuda":
        return torch.cuda.max_memory_allocated(place.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform == "linux" else 2**20)


def _ignore(*_: object) -> None:
    """Of the workers that write nothing."""


def _figure(config: RecipeConfig, name: str) -> str:
    return storage.join(config.output, "figures", name)


def _show_samples(train: Slices, config: RecipeConfig) -> None:
    """Some training slices with their masks, evenly chosen among those with tumor."""
    channel = shown_channel(train.archive.info.channels)
    indices = np.unique(np.linspace(0, len(train) - 1, 8 * SHOWN_SAMPLES).round().astype(int)).tolist()
    pixels_nhwc, mask_nhw, _ = train[indices]
    order = sorted(range(len(indices)), key=lambda n: not mask_nhw[n].any())[:SHOWN_SAMPLES]
    samples = [
        (
            train.rows.patients[train.rows.patient_n[indices[n]]],
            pixels_nhwc[n, ..., channel].numpy(),
            mask_nhw[n].bool().numpy(),
        )
        for n in sorted(order)
    ]
    title = f"Training slices, {train.archive.info.channels[channel]}, with their masks"
    figures.sample_slices(samples, title, _figure(config, "samples.png"))


class _Writer:
    """The first worker's side: checkpoints, tables, figures, and messages to the driver."""

    def __init__(self, worker: _Worker, cycles: Cycles) -> None:
        self.worker, self.cycles = worker, cycles
        self.config, self.queue = worker.task.config, worker.task.queue
        state = worker.state
        self.history = [EpochResult(**{**row, "epoch": int(row["epoch"])}) for row in state.history] if state else []  # type: ignore[arg-type]
        self.steps = [step for step in self._old_steps() if step.epoch <= len(self.history)] if state else []
        self.unsent: list[Step] = []
        self.last_message = 0.0
        steps = sum(epochs for epochs, _ in cycles) * (len(worker.train) // self.config.batch_size)
        self.queue.put({"kind": "begin", "steps": steps, "steps_done": len(self.steps), "cycles": cycles,
                        "history": [asdict(result) for result in self.history]})  # fmt: skip

    def step(self, step: Step) -> None:
        """Keep it, and tell the driver about once a second."""
        self.steps.append(step)
        self.unsent.append(step)
        if time.monotonic() - self.last_message >= STEP_MESSAGE_SECONDS:
            self._send_steps()

    def epoch(self, result: EpochResult, learn: Learner) -> None:
        """Write best/ if it is the best, last/, and the tables; last/trainer.pt says that the epoch is done."""
        self.history.append(result)
        best = best_epoch(self.history) is result
        model = learn.model.module if isinstance(learn.model, DistributedDataParallel) else learn.model
        metrics = {"dice": result.dice, "patient_dice": result.patient_dice, "valid_loss": result.valid_loss,
                   "epoch": float(result.epoch)}  # fmt: skip
        card = replace(self.worker.card, metrics=metrics)
        last = storage.join(self.config.output, "last")
        if best:
            self._write_patients(learn.patient_dice)
            checkpoint.save(storage.join(self.config.output, "best"), model, card)
        written = checkpoint.save(last, model, card)
        rows = [asdict(earlier) for earlier in self.history]
        storage.publish_csv(storage.join(self.config.output, "history.csv"), rows)
        storage.publish_csv(storage.join(self.config.output, "steps.csv"), [asdict(step) for step in self.steps])
        weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        checkpoint.save_trainer(
            last, TrainerState(result.epoch, self.cycles, weights, optimizer_state(learn), card.mean, card.std, tuple(rows))
        )
        self._send_steps()
        self.queue.put({"kind": "epoch", "result": asdict(result), "best_sha256": written.weights_sha256 if best else ""})

    def finish(self) -> None:
        """Draw what the training came to."""
        numbers, rates, momenta = zip(*((step.step, step.lr, step.momentum) for step in self.steps), strict=True)
        figures.schedule(numbers, rates, momenta, _figure(self.config, "schedule.png"))
        figures.history(self.history, _figure(self.config, "history.png"))
        self._show_patients()
        self.queue.put({"kind": "done", "peak_memory_mb": peak_memory_mb(self.worker.place)})

    def _send_steps(self) -> None:
        if self.unsent:
            self.queue.put({"kind": "steps", "steps": self.unsent})
        self.unsent, self.last_message = [], time.monotonic()

    def _old_steps(self) -> list[Step]:
        rows = csv.DictReader(storage.read_bytes(storage.join(self.config.output, "steps.csv")).decode().splitlines())
        return [
            Step(int(row["step"]), int(row["epoch"]), float(row["lr"]), float(row["momentum"]), float(row["loss"]))
            for row in rows
        ]

    def _write_patients(self, dice: Sequence[float]) -> None:
        counts = self.worker.valid.rows.counts()
        rows = [
            {"patient_id": patient, "slices": counts[patient], "dice": value}
            for patient, value in zip(counts, dice, strict=True)
        ]
        storage.publish_csv(storage.join(self.config.output, "patients.csv"), rows)

    def _show_patients(self) -> None:
        """Truth against prediction for the best, the median and the worst validation patient, in the best epoch."""
        valid, device = self.worker.valid, self.worker.place.device
        text = storage.read_bytes(storage.join(self.config.output, "patients.csv")).decode()
        ranked = sorted(csv.DictReader(text.splitlines()), key=lambda row: -float(row["dice"]))
        model, card = checkpoint.load(storage.join(self.config.output, "best"))
        predictor = Predictor(model, card, batch_size=1, threshold=card.threshold, device=device)
        channel = shown_channel(card.channels)
        samples = []
        places = {"worst": len(ranked) - 1, "median": len(ranked) // 2, "best": 0}
        for place, name in sorted({place: name for name, place in places.items()}.items()):  # one row each, if there are few
            row = ranked[place]
            own = np.flatnonzero(valid.rows.patient_n == valid.rows.patients.index(row["patient_id"])).tolist()
            pixels_nhwc, mask_nhw, _ = valid[own]
            shown = int(mask_nhw.sum(dim=(1, 2)).argmax())
            prediction = predictor.predict(pixels_nhwc[shown : shown + 1].numpy())
            samples.append(
                Sample(
                    title=f"{name}: {row['patient_id']}",
                    image_hw=pixels_nhwc[shown, ..., channel].numpy(),
                    truth_hw=mask_nhw[shown].bool().numpy(),
                    prediction_hw=prediction.mask_nhw[0],
                    note=f"Dice of the patient {float(row['dice']):.3f}",
                )
            )
        figures.contact_sheet(
            samples,
            "Validation patients, the slice with most tumor",
            _figure(self.config, "patients.png"),
            card.channels[channel],
        )
