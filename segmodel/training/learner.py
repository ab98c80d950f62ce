"""fastai's Learner over the archive's slices: one worker's part of a data-parallel training."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import fastai.callback.schedule  # noqa: F401 - gives Learner its fit_one_cycle
import torch
import torch.distributed as dist
from fastai.callback.core import Callback, CancelBatchException
from fastai.data.core import DataLoaders
from fastai.learner import AvgSmoothLoss, Learner
from fastai.optimizer import OptimWrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segmodel.archive.slice_format import flair_channel
from segmodel.core.dice import EpochResult, Step, tumor_patient_mean
from segmodel.core.errors import SegmodelError, TrainingError
from segmodel.data.augmentation import Augmentation
from segmodel.data.dataset import GlobalBatches, Loader, Portion, Slices, Statistics, normalise
from segmodel.settings.training import RecipeConfig
from segmodel.training.losses import SegmentationLoss, dice_metric, loss_metric, patient_dice_metric

Cycles = tuple[tuple[int, float], ...]
"""(epochs, peak learning rate) of each 1cycle."""
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Place:
    """Where a worker stands among all."""

    rank: int
    world_size: int
    device: torch.device


class NoSmoothLoss(AvgSmoothLoss):
    """In place of the one that fastai's Recorder fetches from the device, and from all workers, at every step for its bar."""

    def accumulate(self, learn: Learner) -> None:
        """Nothing: `Reports` has the losses."""


class Batches(Callback):
    """Bytes as they come from the archive become the network's input, on the device; augmented while training."""

    order = -10

    def __init__(
        self,
        statistics: Statistics,
        augmentation: Augmentation,
        memory_format: torch.memory_format,
        device: torch.device,
    ) -> None:
        self.augmentation, self.memory_format = augmentation, memory_format
        # Made once: making them in a step makes a GPU wait.
        self.mean = torch.tensor(statistics.mean, device=device)
        self.std = torch.tensor(statistics.std, device=device)

    def before_batch(self) -> None:
        (pixels_nhwc, mask_nhw), (self.learn.rows_n, random_nk) = self.learn.xb, self.learn.yb
        x_nchw = pixels_nhwc.permute(0, 3, 1, 2).float()
        if self.training:
            x_nchw, mask_nhw = self.augmentation(x_nchw, mask_nhw, random_nk)
        x_nchw = normalise(x_nchw, self.mean, self.std)
        x_nchw = x_nchw.contiguous(memory_format=self.memory_format)
        self.learn.xb, self.learn.yb = (x_nchw,), (mask_nhw.long(),)


class BF16(Callback):
    """The network runs under bfloat16 autocast; loss and gradients stay in fp32, which needs no scaling of the loss."""

    order = -5

    def before_batch(self) -> None:
        self.autocast = torch.autocast(self.learn.xb[0].device.type, dtype=torch.bfloat16)
        self.autocast.__enter__()  # type: ignore[no-untyped-call]

    def after_pred(self) -> None:
        self.autocast.__exit__(None, None, None)


class Accumulate(Callback):
    """A step's gradient is summed over several passes; the workers exchange it in the last one alone."""

    order = 20  # before the schedule (60)

    def __init__(self, passes: int) -> None:
        self.passes = passes

    @property
    def _last(self) -> bool:
        return bool((self.learn.iter + 1) % self.passes == 0)

    def before_batch(self) -> None:
        if not self.training:
            return
        # The schedule moves from step to step, not from pass to pass.
        first_pass = self.iter - self.iter % self.passes
        self.learn.pct_train = (self.epoch + first_pass / self.n_iter) / self.n_epoch
        if isinstance(self.learn.model, DistributedDataParallel):
            self.learn.model.require_backward_grad_sync = self._last

    def after_loss(self) -> None:
        if self.training:
            self.learn.loss_grad = self.learn.loss_grad / self.passes

    def before_step(self) -> None:
        if not self._last:
            # Also skips zero_grad: the gradients stay for the next pass.
            raise CancelBatchException


class ClipGradient(Callback):
    """Shortens a step's gradient to a largest norm."""

    order = 30  # after Accumulate: the norm is that of the whole step

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def before_step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.learn.model.parameters(), self.max_norm)


class EpochSeed(Callback):
    """The order and the augmentation of an epoch depend on seed and epoch, dropout on the worker, too.

    A training that goes on from a checkpoint thus sees what it would have seen without the break.
    """

    order = -30

    def __init__(self, sampler: GlobalBatches, seed: int, rank: int, first_epoch: int) -> None:
        self.sampler, self.seed, self.rank, self.first_epoch = sampler, seed, rank, first_epoch

    def before_train(self) -> None:
        self.sampler.epoch = self.first_epoch + self.epoch
        torch.manual_seed(((self.seed * 100_003 + self.sampler.epoch) * 1009 + self.rank) % 2**63)


class ValidateAlike(Callback):
    """All workers validate one and the same network.

    Batch norm's running statistics differ from worker to worker after a step; the first worker's, which are the ones that are
    saved, go to all. Validation then bypasses DistributedDataParallel, since workers may have different numbers of batches.
    """

    order = -20

    def before_validate(self) -> None:
        self._wrapped = self.learn.model
        if isinstance(self._wrapped, DistributedDataParallel):
            for buffer in self._wrapped.module.buffers():
                dist.broadcast(buffer, src=0)
            self.learn.model = self._wrapped.module

    def after_validate(self) -> None:
        self.learn.model = self._wrapped


class PendingLoss:
    """A loss on its way from the device; only what was queued before it is waited for.

    Fetching a value plainly would wait for the step that was queued after it, too.
    """

    def __init__(self, loss: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._loss = torch.empty((), dtype=loss.dtype, pin_memory=loss.is_cuda)
        self._loss.copy_(loss, non_blocking=True)
        if loss.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def value(self) -> float:
        """The loss."""
        if self._copied is not None:
            self._copied.synchronize()
        return float(self._loss)


class Reports(Callback):
    """Calls `on_step` with every step and `on_epoch` after every validation; a loss that is no number ends the training.

    A step's loss is copied from the device while the next step runs there, and read once the copy has ended: waiting at every
    step would leave the device idle between two.
    """

    order = 60  # after fastai's Recorder (50), which computes the metrics

    def __init__(
        self,
        on_step: Callable[[Step], None],
        on_epoch: Callable[[EpochResult, Learner], None],
        recipe: RecipeConfig,
        first_epoch: int,
    ) -> None:
        self.on_step, self.on_epoch, self.first_epoch = on_step, on_epoch, first_epoch
        self.passes, self.batch_size = recipe.accumulate, recipe.batch_size

    def before_epoch(self) -> None:
        self.started = time.monotonic()
        self.losses: list[float] = []
        self.of_passes: list[Tensor] = []
        self.pending: tuple[int, float, float, PendingLoss] | None = None

    def after_loss(self) -> None:
        if self.training:
            self.of_passes.append(self.learn.loss.detach())

    def after_batch(self) -> None:
        if self.training and len(self.of_passes) == self.passes:
            hypers = self.learn.opt.hypers[-1]
            previous, self.pending = (
                self.pending,
                (
                    (self.first_epoch + self.epoch) * (self.n_iter // self.passes)
                    + self.iter // self.passes
                    + 1,
                    hypers["lr"],
                    hypers["mom"],
                    PendingLoss(torch.stack(self.of_passes).mean()),
                ),
            )
            self.of_passes = []
            self._report(previous)

    def after_train(self) -> None:
        if self.pending is not None:
            self._report(self.pending)
            self.train_seconds = time.monotonic() - self.started

    def _report(self, pending: tuple[int, float, float, PendingLoss] | None) -> None:
        if pending is None:
            return
        number, lr, momentum, loss = pending
        step = Step(number, self.first_epoch + self.epoch + 1, lr, momentum, loss.value())
        if not math.isfinite(step.loss):
            raise TrainingError(
                f"the loss became {step.loss} in epoch {step.epoch}, step {number}, at a learning rate of {lr:.2g}: train anew "
                "with a smaller --lr, or --lr auto"
            )
        self.losses.append(step.loss)
        self.on_step(step)

    def after_epoch(self) -> None:
        if not self.losses:  # an epoch that `fit` leaves out
            return
        metrics = {metric.name: metric.value for metric in self.learn.metrics}
        if not math.isfinite(
            metrics["loss"]
        ):  # a step's gradient may be no number where its loss still is one
            raise TrainingError(
                f"the validation loss became {metrics['loss']} in epoch {self.first_epoch + self.epoch + 1}: train anew with a "
                "smaller --lr, or --lr auto"
            )
        patient_dice = metrics["patient_dice"]
        result = EpochResult(
            epoch=self.first_epoch + self.epoch + 1,
            train_loss=sum(self.losses) / len(self.losses),
            valid_loss=metrics["loss"],
            dice=metrics["dice"],
            patient_dice=sum(patient.dice for patient in patient_dice) / len(patient_dice),
            tumor_patient_dice=tumor_patient_mean(patient_dice),
            slices_per_second=len(self.losses) * self.batch_size / self.train_seconds,
            seconds=time.monotonic() - self.started,
        )
        self.learn.patient_dice = patient_dice
        self.on_epoch(result, self.learn)


def build_learner(
    model: nn.Module,
    train: Slices,
    valid: Slices,
    statistics: Statistics,
    recipe: RecipeConfig,
    place: Place,
) -> Learner:
    """A Learner for one of the workers.

    Args:
        model: on its device, and wrapped if there are several workers.
        train: slices.
        valid: slices.
        statistics: of the slices.
        recipe: its precision is bf16 or fp32, not auto.
        place: of the worker.
    """
    sampler = GlobalBatches(
        train, recipe.batch_size, recipe.accumulate, place.rank, place.world_size, recipe.seed
    )
    part = max(1, recipe.batch_size // (place.world_size * recipe.accumulate))
    loaders = DataLoaders(
        Loader(train, sampler, place.device),
        Loader(valid, Portion(len(valid), part, place.rank, place.world_size), place.device),
    )
    loss = SegmentationLoss(recipe.loss)
    patient_n = torch.from_numpy(valid.rows.patient_n).long().to(place.device)
    channels = train.archive.info.channels
    augmentation = Augmentation(
        recipe.max_rotation,
        recipe.max_zoom,
        recipe.max_gain,
        recipe.missing_sequences,
        flair_channel(channels),
    )
    callbacks = [
        Batches(statistics, augmentation, MEMORY_FORMATS[recipe.memory_format], place.device),
        ValidateAlike(),
    ]
    if recipe.precision == "bf16":
        callbacks.append(BF16())
    if recipe.accumulate > 1:
        callbacks.append(Accumulate(recipe.accumulate))
    if recipe.clip_norm > 0:
        callbacks.append(ClipGradient(recipe.clip_norm))
    learner = Learner(
        loaders,
        model,
        loss_func=loss,
        splitter=_decayed_first,
        # fastai's own Adam with its own numbers, but all parameters in one kernel; decay is set a group in `fit`.
        opt_func=partial(
            OptimWrapper, opt=torch.optim.AdamW, betas=(0.9, 0.99), eps=1e-5, fused=True
        ),
        metrics=[
            loss_metric(loss),
            dice_metric(),
            patient_dice_metric(patient_n, len(valid.rows.patients)),
        ],
        cbs=callbacks,
    )
    # fastai's bars redraw a line many times a second, which floods a job's log.
    learner.remove_cbs([cb for cb in learner.cbs if type(cb).__name__ == "ProgressCallback"])
    learner.recorder.smooth_loss = NoSmoothLoss()
    learner.create_opt()
    return learner


def fit(
    learner: Learner,
    cycles: Cycles,
    recipe: RecipeConfig,
    place: Place,
    on_step: Callable[[Step], None],
    on_epoch: Callable[[EpochResult, Learner], None],
    epochs_done: int = 0,
) -> None:
    """Train one 1cycle after the other.

    Args:
        learner: from `build_learner`.
        cycles: to train.
        recipe: of the learner.
        place: of the learner.
        on_step: called with every optimizer step.
        on_epoch: called after every epoch; the learner's `patient_dice` then holds a `PatientDice` of each validation patient.
        epochs_done: of all cycles together; these are left out, and the rest follows its schedule as if they had not been.

    Raises:
        TrainingError: the loss is no number any more.
    """
    first = 0
    for epochs, lr in cycles:
        skip = min(max(epochs_done - first, 0), epochs)
        if skip < epochs:
            callbacks = [
                EpochSeed(learner.dls[0].sampler, recipe.seed, place.rank, first),
                Reports(on_step, on_epoch, recipe, first),
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
    """Take away what fastai puts before the message of an error: the callback and the event."""
    try:
        yield
    except SegmodelError as error:
        error.args = (str(error).rpartition(":\n\t")[2],)
        raise


def optimizer_state(learner: Learner) -> dict[int, dict[str, Tensor]]:
    """A copy of Adam's moments and step count of each parameter, on the CPU."""
    state = learner.opt.opt.state_dict()["state"]
    return {
        number: {name: value.to("cpu", copy=True) for name, value in values.items()}
        for number, values in state.items()
    }


def restore_optimizer(learner: Learner, state: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Put back what `optimizer_state` gave."""
    optimizer = learner.opt.opt
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _decayed_first(model: nn.Module) -> list[list[nn.Parameter]]:
    """Two groups of parameters: weights, which decay, then biases and the scales of norms, which do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]]
