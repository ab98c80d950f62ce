"""fastai's Learner over an archive's slices: one worker's part of a data-parallel training."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import fastai.callback.schedule  # noqa: F401 - gives Learner its fit_one_cycle
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import Tensor, nn

from segmodel.archive.slice_format import flair_channel
from segmodel.core.dice import EpochResult, Step
from segmodel.core.errors import SegmodelError
from segmodel.data.augmentation import Augmentation
from segmodel.data.dataset import SliceDataset
from segmodel.data.loader import Loader
from segmodel.data.preprocessing import ChannelStatistics
from segmodel.data.sampling import TrainSampler, ValidationSampler
from segmodel.settings.training import RecipeConfig
from segmodel.training.callbacks import (
    BF16,
    Accumulate,
    ClipGradient,
    NoSmoothLoss,
    PrepareBatch,
    ReportProgress,
    SetEpoch,
    SyncForValidation,
)
from segmodel.training.distributed import WorkerContext
from segmodel.training.losses import SegmentationLoss
from segmodel.training.metrics import dice_metric, loss_metric, patient_dice_metric

Cycles = tuple[tuple[int, float], ...]
"""(epochs, peak learning rate) of each 1cycle."""
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def build_learner(
    model: nn.Module,
    train: SliceDataset,
    valid: SliceDataset,
    statistics: ChannelStatistics,
    recipe: RecipeConfig,
    worker: WorkerContext,
) -> Learner:
    """Build the Learner of one worker.

    Args:
        model: on its device, and wrapped if there are several workers.
        train: slices to train on.
        valid: slices to validate on.
        statistics: of the slices' channels.
        recipe: its precision is bf16 or fp32, not auto.
        worker: which one.
    """
    augmentation = Augmentation(
        recipe.max_rotation,
        recipe.max_zoom,
        recipe.max_gain,
        recipe.missing_sequences,
        flair_channel(train.archive.info.channels),
    )
    memory_format = MEMORY_FORMATS[recipe.memory_format]
    prepare = PrepareBatch(statistics, augmentation, model, memory_format, worker.device)
    loss = SegmentationLoss(recipe.loss)
    patient_n = torch.from_numpy(valid.rows.patient_n).long().to(worker.device)
    learner = Learner(
        _loaders(train, valid, recipe, worker, prepare.random_numbers),
        model,
        loss_func=loss,
        splitter=_decayed_first,
        # fastai's own Adam settings, but all parameters in one kernel; `fit` sets the decay.
        opt_func=partial(
            OptimWrapper, opt=torch.optim.AdamW, betas=(0.9, 0.99), eps=1e-5, fused=True
        ),
        metrics=[
            loss_metric(loss),
            dice_metric(),
            patient_dice_metric(patient_n, len(valid.rows.patients)),
        ],
        cbs=[prepare, SyncForValidation(), *_optional_callbacks(recipe)],
    )
    # fastai's progress bars redraw a line many times a second, which floods a job's log.
    learner.remove_cbs([cb for cb in learner.cbs if type(cb).__name__ == "ProgressCallback"])
    learner.recorder.smooth_loss = NoSmoothLoss()
    learner.create_opt()
    return learner


def _loaders(
    train: SliceDataset,
    valid: SliceDataset,
    recipe: RecipeConfig,
    worker: WorkerContext,
    random_numbers: int,
) -> DataLoaders:
    train_sampler = TrainSampler(
        train.rows.shard_n,
        recipe.batch_size,
        recipe.accumulate,
        worker.rank,
        worker.world_size,
        recipe.seed,
        train.cached_groups,
    )
    batch_size = max(1, recipe.batch_size // (worker.world_size * recipe.accumulate))
    valid_sampler = ValidationSampler(len(valid), batch_size, worker.rank, worker.world_size)
    return DataLoaders(
        Loader(train, train_sampler, worker.device, random_numbers),
        Loader(valid, valid_sampler, worker.device),
    )


def _optional_callbacks(recipe: RecipeConfig) -> list[Callback]:
    callbacks = []
    if recipe.precision == "bf16":
        callbacks.append(BF16())
    if recipe.accumulate > 1:
        callbacks.append(Accumulate(recipe.accumulate))
    if recipe.clip_norm > 0:
        callbacks.append(ClipGradient(recipe.clip_norm))
    return callbacks


def fit(
    learner: Learner,
    cycles: Cycles,
    recipe: RecipeConfig,
    on_step: Callable[[Step], None],
    on_epoch: Callable[[EpochResult, Learner], None],
    epochs_done: int = 0,
) -> None:
    """Train one 1cycle after the other.

    Args:
        learner: from `build_learner`.
        cycles: to train.
        recipe: of the learner.
        on_step: called with every optimizer step.
        on_epoch: called after every epoch; the learner's `patient_dice` then holds a `PatientDice`
            of each validation patient.
        epochs_done: of all cycles together. They are skipped; the others follow their schedule as
            if these had been trained.

    Raises:
        TrainingError: the loss became NaN or infinite.
    """
    first = 0
    for epochs, lr in cycles:
        skip = min(max(epochs_done - first, 0), epochs)
        if skip < epochs:
            callbacks = [
                SetEpoch(learner.dls[0].sampler, first),
                ReportProgress(on_step, on_epoch, recipe, first),
            ]
            with learner.no_logging(), _plain_errors():
                learner.fit_one_cycle(
                    epochs,
                    lr_max=lr,
                    wd=[recipe.weight_decay, 0.0],
                    start_epoch=skip,
                    cbs=callbacks,
                )
        first += epochs


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Remove the callback and event that fastai puts before the message of an error."""
    try:
        yield
    except SegmodelError as error:
        error.args = (str(error).rpartition(":\n\t")[2],)
        raise


def optimizer_state(learner: Learner) -> dict[int, dict[str, Tensor]]:
    """Copy Adam's moments and step count of each parameter to the CPU."""
    state = learner.opt.opt.state_dict()["state"]
    return {
        number: {name: value.to("cpu", copy=True) for name, value in values.items()}
        for number, values in state.items()
    }


def restore_optimizer(learner: Learner, state: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Restore what `optimizer_state` gave."""
    optimizer = learner.opt.opt
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _decayed_first(model: nn.Module) -> list[list[nn.Parameter]]:
    """Two groups of parameters: weights, which decay; biases and norms' scales, which do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]]
