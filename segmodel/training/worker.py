"""What each worker of a training or of a learning-rate range test runs."""

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import ray.train
import torch
from ray.train.torch import get_device, prepare_model
from torch import nn

from segmodel.archive.reader import Archive
from segmodel.core.errors import ConfigError, SegmodelError, TrainingError
from segmodel.core.memory import available_memory, total_memory
from segmodel.data.dataset import SliceDataset
from segmodel.data.preprocessing import ChannelStatistics
from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard
from segmodel.models.cost import activation_bytes, count_parameters
from segmodel.models.cpu import set_up_cpu
from segmodel.models.registry import ModelSettings, build_model
from segmodel.report import figures
from segmodel.runtime.messages import MessageQueue
from segmodel.settings.training import FindLrConfig, RecipeConfig, TrainConfig
from segmodel.storage import csv_files, s3, store
from segmodel.training.distributed import WorkerContext, sum_over_workers
from segmodel.training.learner import MEMORY_FORMATS, Cycles, build_learner, fit, restore_optimizer
from segmodel.training.lr_range_test import RangeTest, range_test
from segmodel.training.messages import (
    DataReady,
    RangeTestDone,
    RangeTestStarted,
    RangeTestStep,
    WorkerFailed,
)
from segmodel.training.precision import choose_precision
from segmodel.training.recorder import (
    STEP_MESSAGE_SECONDS,
    Worker,
    WorkerTask,
    Writer,
    figure_uri,
    show_samples,
)

THRESHOLD = 0.5
STREAMED_GROUPS = 64
"""Row groups that a worker keeps while it streams: slices are shuffled over as many, 4,096 slices in all."""
AUTO_LR_MIN, AUTO_LR_MAX, AUTO_STEPS = FindLrConfig.lr_min, FindLrConfig.lr_max, FindLrConfig.steps


def run_training(task: WorkerTask) -> None:
    """Train, from the last whole epoch if there is one; the first worker writes checkpoints and reports.

    Raises:
        Exception: whatever goes wrong. The driver is told first; Ray Train then ends all workers.
    """
    config = task.config
    assert isinstance(config, TrainConfig)  # noqa: S101 - the driver gave it
    with report_failure(task.queue):
        worker = _set_up(task, resume=True)
        cycles = worker.state.cycles if worker.state else _resolve_cycles(worker, config)
        writer = Writer(worker, cycles) if worker.first else None
        fit(
            worker.learner,
            cycles,
            config,
            epochs_done=worker.state.epochs_done if worker.state else 0,
            on_step=writer.step if writer else _ignore,
            on_epoch=writer.epoch if writer else _ignore,
        )
        if writer is not None:
            writer.finish()


def run_range_test(task: WorkerTask) -> None:
    """The learning-rate range test alone; the first worker writes its results.

    Raises:
        Exception: whatever goes wrong. The driver is told first; Ray Train then ends all workers.
    """
    config = task.config
    assert isinstance(config, FindLrConfig)  # noqa: S101 - the driver gave it
    with report_failure(task.queue):
        worker = _set_up(task, resume=False)
        _range_test(worker, config.lr_min, config.lr_max, config.steps)


@contextlib.contextmanager
def report_failure(queue: MessageQueue) -> Iterator[None]:
    """Tell the driver of an error and on which node it happened, then raise it.

    A worker must not return after an error: the others would wait for it in their next collective.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        small = TrainingError(f"the GPU's memory is too small ({error}): {_SMALLER}")
        queue.put(WorkerFailed(small, socket.gethostname()))
        raise small from error
    except Exception as error:
        told: Exception = error
        if not isinstance(error, SegmodelError):
            # It may not be picklable, or need modules that the driver does not import.
            kind = OSError if isinstance(error, OSError) else RuntimeError
            told = kind(f"{type(error).__name__}: {error}")
        queue.put(WorkerFailed(told, socket.gethostname()))
        raise


def _set_up(task: WorkerTask, resume: bool) -> Worker:
    s3.retry_for_minutes()
    set_up_cpu(task.threads)
    config, ray_context = task.config, ray.train.get_context()
    context = WorkerContext(
        ray_context.get_world_rank(), ray_context.get_world_size(), get_device()
    )
    archive = Archive(config.archive)
    channels = archive.info.channels
    torch.manual_seed(config.seed)  # the same weights everywhere
    settings = _model_settings(config, len(channels))
    model = build_model(settings)
    _check_memory(config, settings, context, ray_context.get_local_world_size())
    train, valid, streamed = _open_slices(task, archive, ray_context.get_local_world_size())
    last = store.join(config.output, "last")
    state = None
    if resume and store.exists(store.join(last, checkpoint.TRAINER)):
        state = checkpoint.load_trainer(last)
        model.load_state_dict(state.weights)
        statistics = ChannelStatistics(state.mean, state.std)
    else:
        pretrained = None
        if config.arch == "dynamic":
            from segmodel.models.pretrained import IMAGENET_MEAN, IMAGENET_STD, load_encoder

            load_encoder(model, config.encoder, config.encoder_weights)
            if config.encoder_weights != "none" and len(channels) == len(IMAGENET_MEAN):
                pretrained = ChannelStatistics(IMAGENET_MEAN, IMAGENET_STD)
        statistics = pretrained or train.statistics()  # which reads slices
    card = ModelCard(
        model=settings,
        channels=channels,
        image_size=config.image_size,
        mean=statistics.mean,
        std=statistics.std,
        threshold=THRESHOLD,
        training_patients=task.split.train,
        validation_patients=task.split.valid,
        metrics={},
    )
    precision = choose_precision(config, state, model, train, statistics, context.device)
    if context.rank == 0:
        per_pass = np.arange(config.batch_size // config.accumulate)
        task.queue.put(
            DataReady(
                train_slices=len(train),
                valid_slices=len(valid),
                parameters=count_parameters(model),
                workers=context.world_size,
                device=str(context.device),
                precision=precision,
                streamed=streamed,
                each=tuple(len(part) for part in np.array_split(per_pass, context.world_size)),
            )
        )
    if state is None and context.rank == 0:
        show_samples(train, task)
    recipe = replace(config, precision=precision)
    learner = build_learner(
        _wrap_model(model, config, context), train, valid, statistics, recipe, context
    )
    if state is not None:
        restore_optimizer(learner, state.optimizer)
    return Worker(task, context, learner, train, valid, card, state, precision)


def _wrap_model(model: nn.Module, config: RecipeConfig, context: WorkerContext) -> nn.Module:
    """The network on its device, as the flags want it, wrapped if there are several workers."""
    model = model.to(context.device).to(memory_format=MEMORY_FORMATS[config.memory_format])
    if config.sync_batchnorm and context.world_size > 1:
        if context.device.type != "cuda":
            raise ConfigError("--sync-batchnorm works on GPUs only: leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if config.compile:
        model.compile()
    # Ray Train compares every parameter's strides with the first worker's, as DDP does: set the memory format before.
    return prepare_model(model)


def _model_settings(config: RecipeConfig, channels: int) -> ModelSettings:
    if config.arch == "dynamic":
        return ModelSettings(arch="dynamic", channels=channels, encoder=config.encoder)
    return ModelSettings(
        arch="classical", channels=channels, dropout=config.dropout, width=config.width
    )


_SMALLER = "give a smaller --batch-size or --image-size, or spread the batch over more passes with --accumulate"


def _check_memory(
    config: RecipeConfig, settings: ModelSettings, context: WorkerContext, local_workers: int
) -> None:
    """What a pass keeps for its gradient must fit into memory; all workers agree on whether it does."""
    slices = -(-config.batch_size // (context.world_size * config.accumulate))
    needed = slices * activation_bytes(settings, config.image_size)
    if context.device.type == "cuda":
        memory = torch.cuda.mem_get_info(context.device)[1]
        needed = (
            needed if config.precision == "fp32" else needed * 6 // 10
        )  # most of it is half as wide under autocast
    else:
        memory = total_memory() // local_workers
    if sum_over_workers([float(needed > memory)])[0] > 0:
        raise ConfigError(
            f"--image-size {config.image_size}, --batch-size {config.batch_size}: {slices} slices in one pass of a worker take "
            f"about {needed / 2**30:.0f} GiB, and there are {memory / 2**30:.0f} GiB; {_SMALLER}"
        )


def _open_slices(
    task: WorkerTask, archive: Archive, local_workers: int
) -> tuple[SliceDataset, SliceDataset, bool]:
    """Training and validation slices, and whether they are streamed; all workers do the same."""
    config = task.config
    train = SliceDataset(archive, task.rows.of(task.split.train), config.image_size)
    valid = SliceDataset(archive, task.rows.of(task.split.valid), config.image_size)
    needed = (len(train) + len(valid)) * train.bytes_per_slice * local_workers
    too_large = sum_over_workers([float(needed > available_memory() / 2)])[0] > 0
    if config.data == "stream" or (config.data == "auto" and too_large):
        train = SliceDataset(archive, train.rows, config.image_size, cached_groups=STREAMED_GROUPS)
        valid = SliceDataset(archive, valid.rows, config.image_size, cached_groups=2)
        return train, valid, True
    available = available_memory()
    if sum_over_workers([float(needed > available)])[0] > 0:
        raise ConfigError(
            f"--data memory: the slices take {needed / 2**30:.0f} GiB on each machine, and one has no room for them (this one "
            f"has {available / 2**30:.0f} GiB left); give --data stream"
        )
    train.load()
    valid.load()
    return train, valid, False


def _resolve_cycles(worker: Worker, config: TrainConfig) -> Cycles:
    found = None
    if any(lr == "auto" for _, lr in config.cycles):
        found = _range_test(worker, AUTO_LR_MIN, AUTO_LR_MAX, AUTO_STEPS)
    return tuple(
        (epochs, found if found is not None and lr == "auto" else float(lr))
        for epochs, lr in config.cycles
    )


def _range_test(worker: Worker, lr_min: float, lr_max: float, steps: int) -> float:
    config, queue = worker.task.config, worker.task.queue
    if worker.first:
        queue.put(RangeTestStarted(steps))
    told_at = 0.0

    def on_step(step: int) -> None:
        nonlocal told_at
        if worker.first and time.monotonic() - told_at >= STEP_MESSAGE_SECONDS:
            told_at = time.monotonic()
            queue.put(RangeTestStep(step))

    found = range_test(
        worker.learner,
        config,
        lr_min=lr_min,
        lr_max=lr_max,
        steps=steps,
        on_step=on_step,
    )
    if worker.first:
        _write_range_test(found, worker)
    return found.suggestion


def _write_range_test(found: RangeTest, worker: Worker) -> None:
    """The curve goes out even if it suggests nothing: it shows why."""
    task, config, suggestion = worker.task, worker.task.config, None
    with contextlib.suppress(TrainingError):  # the caller meets it too
        suggestion = found.suggestion
    columns = zip(found.lrs, found.losses, found.smoothed, strict=True)
    rows = [{"lr": lr, "loss": loss, "smoothed_loss": smoothed} for lr, loss, smoothed in columns]
    if rows:
        task.publish(csv_files.publish_csv, store.join(config.output, "lr_find.csv"), rows)
        uri = figure_uri(config, "lr_find.png")
        task.publish(
            figures.range_test_curve, found.lrs, found.losses, found.smoothed, suggestion, uri
        )
    if suggestion is not None:
        task.queue.put(RangeTestDone(tuple(rows), suggestion))


def _ignore(*_: object) -> None:
    """Of the workers that write nothing."""
