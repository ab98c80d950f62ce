"""Sets up a worker of a training: its slices, its network and its learner."""

from dataclasses import replace

import numpy as np
import ray.train
import torch
from ray.train.torch import get_device, prepare_model
from torch import nn

from segmodel.archive.reader import Archive
from segmodel.core.errors import ConfigError
from segmodel.core.memory import available_memory, total_memory
from segmodel.data.dataset import SliceDataset
from segmodel.data.preprocessing import ChannelStatistics
from segmodel.inference.precision import Precision
from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard, TrainerState
from segmodel.models.cost import activation_bytes, count_parameters
from segmodel.models.cpu import set_up_cpu
from segmodel.models.registry import ModelSettings, build_model
from segmodel.settings.training import RecipeConfig
from segmodel.storage import s3, store
from segmodel.training.distributed import WorkerContext, sum_over_workers
from segmodel.training.learner import MEMORY_FORMATS, build_learner, restore_optimizer
from segmodel.training.messages import DataReady
from segmodel.training.pictures import show_samples
from segmodel.training.precision import choose_precision
from segmodel.training.task import Worker, WorkerTask

THRESHOLD = 0.5
STREAMED_GROUPS = 64
"""Row groups that a streaming worker keeps; slices are shuffled over these 4,096 slices."""
SMALLER_BATCH = (
    "give a smaller --batch-size or --image-size, or spread the batch over more passes with "
    "--accumulate"
)


def set_up_worker(task: WorkerTask, resume: bool) -> Worker:
    """Load the data and build the network of one worker; all workers must call it.

    Args:
        task: from the driver.
        resume: go on after the last whole epoch, if there is one.

    Raises:
        ConfigError: the data or the gradient do not fit in memory.
    """
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
    check_memory(config, settings, context, ray_context.get_local_world_size())
    train, valid, streamed = open_slices(task, archive, ray_context.get_local_world_size())
    state, statistics = _load_weights(task, model, train, resume)
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
        _tell_driver(task, train, valid, model, context, precision, streamed)
    if state is None and context.rank == 0:
        show_samples(train, task)
    recipe = replace(config, precision=precision)
    learner = build_learner(
        wrap_model(model, config, context), train, valid, statistics, recipe, context
    )
    if state is not None:
        restore_optimizer(learner, state.optimizer)
    return Worker(task, context, learner, train, valid, card, state, precision)


def _load_weights(
    task: WorkerTask, model: nn.Module, train: SliceDataset, resume: bool
) -> tuple[TrainerState | None, ChannelStatistics]:
    """Fill the network; return the state to resume from, and the statistics of its input."""
    config, last = task.config, store.join(task.config.output, "last")
    if resume and store.exists(store.join(last, checkpoint.TRAINER)):
        state = checkpoint.load_trainer(last)
        model.load_state_dict(state.weights)
        return state, ChannelStatistics(state.mean, state.std)
    if config.arch == "dynamic":
        from segmodel.models.pretrained import IMAGENET_MEAN, IMAGENET_STD, load_encoder

        load_encoder(model, config.encoder, config.encoder_weights)
        channels = len(train.archive.info.channels)
        if config.encoder_weights != "none" and channels == len(IMAGENET_MEAN):
            return None, ChannelStatistics(IMAGENET_MEAN, IMAGENET_STD)
    return None, train.statistics()  # reads slices


def _tell_driver(
    task: WorkerTask,
    train: SliceDataset,
    valid: SliceDataset,
    model: nn.Module,
    context: WorkerContext,
    precision: Precision,
    streamed: bool,
) -> None:
    per_pass = np.arange(task.config.batch_size // task.config.accumulate)
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


def wrap_model(model: nn.Module, config: RecipeConfig, context: WorkerContext) -> nn.Module:
    """Move the network to its device, and wrap it if there are several workers."""
    model = model.to(context.device).to(memory_format=MEMORY_FORMATS[config.memory_format])
    if config.sync_batchnorm and context.world_size > 1:
        if context.device.type != "cuda":
            raise ConfigError("--sync-batchnorm works on GPUs only: leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if config.compile:
        model.compile()
    # Set the memory format before: all workers' parameters must have the same strides.
    return prepare_model(model)


def _model_settings(config: RecipeConfig, channels: int) -> ModelSettings:
    if config.arch == "dynamic":
        return ModelSettings(arch="dynamic", channels=channels, encoder=config.encoder)
    return ModelSettings(
        arch="classical", channels=channels, dropout=config.dropout, width=config.width
    )


def check_memory(
    config: RecipeConfig, settings: ModelSettings, context: WorkerContext, local_workers: int
) -> None:
    """Check that what a pass keeps for its gradient fits in memory, on all workers.

    Raises:
        ConfigError: on every worker, if it does not fit on one.
    """
    slices = -(-config.batch_size // (context.world_size * config.accumulate))
    needed = slices * activation_bytes(settings, config.image_size)
    if context.device.type == "cuda":
        memory = torch.cuda.mem_get_info(context.device)[1]
        if config.precision != "fp32":
            needed = needed * 6 // 10  # most of it is half as wide under autocast
    else:
        memory = total_memory() // local_workers
    if sum_over_workers([float(needed > memory)])[0] > 0:
        raise ConfigError(
            f"--image-size {config.image_size}, --batch-size {config.batch_size}: {slices} slices "
            f"in one pass of a worker take about {needed / 2**30:.0f} GiB, and there are "
            f"{memory / 2**30:.0f} GiB; {SMALLER_BATCH}"
        )


def open_slices(
    task: WorkerTask, archive: Archive, local_workers: int
) -> tuple[SliceDataset, SliceDataset, bool]:
    """Open training and validation slices; decide for all workers whether they are streamed.

    Returns:
        Training slices, validation slices, and whether they are streamed.

    Raises:
        ConfigError: on every worker, if `--data memory` does not fit on one.
    """
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
            f"--data memory: the slices take {needed / 2**30:.0f} GiB on each machine, and one has "
            f"no room for them (this one has {available / 2**30:.0f} GiB left); give --data stream"
        )
    train.load()
    valid.load()
    return train, valid, False
