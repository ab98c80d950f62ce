"""fastai callbacks of a training: network input, epochs, accumulation, validation, reports."""

import math
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from fastai.callback.core import Callback, CancelBatchException
from fastai.learner import AvgSmoothLoss, Learner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segmodel.core.dice import EpochResult, Step, tumor_patient_mean
from segmodel.core.errors import TrainingError
from segmodel.data.augmentation import Augmentation
from segmodel.data.preprocessing import ChannelStatistics, normalise
from segmodel.data.sampling import TrainSampler
from segmodel.models.unet import SliceDropout
from segmodel.settings.training import RecipeConfig


class NoSmoothLoss(AvgSmoothLoss):
    """Replaces fastai's smoothed loss, which waits for the device and all workers at every step."""

    def accumulate(self, learn: Learner) -> None:
        """Do nothing: `ReportProgress` collects the losses."""


class PrepareBatch(Callback):
    """Turns bytes from the archive into the network's input, on the device.

    In training, slices are augmented, and dropout gets its random numbers: a slice's first ones are
    for the augmentation, the others for dropout.
    """

    order = -10

    def __init__(
        self,
        statistics: ChannelStatistics,
        augmentation: Augmentation,
        model: nn.Module,
        memory_format: torch.memory_format,
        device: torch.device,
    ) -> None:
        self.augmentation, self.memory_format = augmentation, memory_format
        self.dropouts = [
            module
            for module in model.modules()
            if isinstance(module, SliceDropout) and module.probability > 0
        ]
        # Made once: making them in every step would make the GPU wait.
        self.mean = torch.tensor(statistics.mean, device=device)
        self.std = torch.tensor(statistics.std, device=device)
        self.for_augmentation = augmentation.count_random_numbers(len(statistics.mean))

    @property
    def random_numbers(self) -> int:
        """How many random numbers a training slice needs."""
        return self.for_augmentation + sum(dropout.channels for dropout in self.dropouts)

    def before_batch(self) -> None:
        (pixels_nhwc, mask_nhw), (self.learn.rows_n, random_nk) = self.learn.xb, self.learn.yb
        x_nchw = pixels_nhwc.permute(0, 3, 1, 2).float()
        if self.training:
            sizes = [self.for_augmentation, *(dropout.channels for dropout in self.dropouts)]
            of_augmentation, *of_dropouts = random_nk.split(sizes, dim=1)
            x_nchw, mask_nhw = self.augmentation(x_nchw, mask_nhw, of_augmentation)
            for dropout, random_nc in zip(self.dropouts, of_dropouts, strict=True):
                dropout.random_nc = random_nc
        x_nchw = normalise(x_nchw, self.mean, self.std)
        x_nchw = x_nchw.contiguous(memory_format=self.memory_format)
        self.learn.xb, self.learn.yb = (x_nchw,), (mask_nhw.long(),)

    def after_fit(self) -> None:
        for dropout in self.dropouts:
            dropout.random_nc = None


class BF16(Callback):
    """Runs the network under bfloat16 autocast.

    Loss and gradients stay in fp32: the loss needs no scaling.
    """

    order = -5

    def before_batch(self) -> None:
        self.autocast = torch.autocast(self.learn.xb[0].device.type, dtype=torch.bfloat16)
        self.autocast.__enter__()  # type: ignore[no-untyped-call]

    def after_pred(self) -> None:
        self.autocast.__exit__(None, None, None)


class Accumulate(Callback):
    """Sums a step's gradient over several passes; workers exchange it in the last pass only."""

    order = 20  # before the schedule (60)

    def __init__(self, passes: int) -> None:
        self.passes = passes

    @property
    def _last(self) -> bool:
        return bool((self.learn.iter + 1) % self.passes == 0)

    def before_batch(self) -> None:
        if not self.training:
            return
        # The schedule advances per step, not per pass.
        first_pass = self.iter - self.iter % self.passes
        self.learn.pct_train = (self.epoch + first_pass / self.n_iter) / self.n_epoch
        if isinstance(self.learn.model, DistributedDataParallel):
            self.learn.model.require_backward_grad_sync = self._last

    def after_loss(self) -> None:
        if self.training:
            self.learn.loss_grad = self.learn.loss_grad / self.passes

    def before_step(self) -> None:
        if not self._last:
            # This also skips zero_grad: the gradients stay for the next pass.
            raise CancelBatchException


class ClipGradient(Callback):
    """Limits the norm of a step's gradient."""

    order = 30  # after Accumulate: the norm is that of the whole step

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def before_step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.learn.model.parameters(), self.max_norm)


class SetEpoch(Callback):
    """Tells the sampler the epoch, on which order, augmentation and dropout depend.

    A resumed training therefore sees what it would have seen without the interruption.
    """

    order = -30

    def __init__(self, sampler: TrainSampler, first_epoch: int) -> None:
        self.sampler, self.first_epoch = sampler, first_epoch

    def before_train(self) -> None:
        self.sampler.epoch = self.first_epoch + self.epoch


class SyncForValidation(Callback):
    """Makes all workers validate the same network.

    Batch norm's running statistics differ between workers after a step. All take those of the first
    worker, which are also the ones that are saved. Validation bypasses DistributedDataParallel,
    because workers may have unequal numbers of batches.
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
    """A loss that is being copied from the device.

    Reading it waits only for what was queued before the copy, and not for the step queued after it.
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


class ReportProgress(Callback):
    """Calls `on_step` with every step and `on_epoch` after every validation.

    If a loss becomes NaN or infinite, the training ends with a TrainingError.

    A step's loss is copied from the device while the next step runs there, and read afterwards:
    waiting for it at once would leave the device idle between steps.
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

    @property
    def _epochs_before(self) -> int:
        return int(self.first_epoch + self.epoch)

    def before_epoch(self) -> None:
        self.started = time.monotonic()
        self.losses: list[float] = []
        self.pass_losses: list[Tensor] = []
        self.pending: tuple[int, float, float, PendingLoss] | None = None

    def after_loss(self) -> None:
        if self.training:
            self.pass_losses.append(self.learn.loss.detach())

    def after_batch(self) -> None:
        if not self.training or len(self.pass_losses) < self.passes:
            return
        steps_per_epoch, steps_before = self.n_iter // self.passes, self.iter // self.passes
        number = self._epochs_before * steps_per_epoch + steps_before + 1
        hypers = self.learn.opt.hypers[-1]
        loss = PendingLoss(torch.stack(self.pass_losses).mean())
        previous, self.pending = self.pending, (number, hypers["lr"], hypers["mom"], loss)
        self.pass_losses = []
        self._report(previous)

    def after_train(self) -> None:
        if self.pending is not None:
            self._report(self.pending)
            self.train_seconds = time.monotonic() - self.started

    def _report(self, pending: tuple[int, float, float, PendingLoss] | None) -> None:
        if pending is None:
            return
        number, lr, momentum, loss = pending
        step = Step(number, self._epochs_before + 1, lr, momentum, loss.value())
        if not math.isfinite(step.loss):
            raise TrainingError(
                f"the loss became {step.loss} in epoch {step.epoch}, step {number}, at a learning "
                f"rate of {lr:.2g}: train again with a smaller --lr, or --lr auto"
            )
        self.losses.append(step.loss)
        self.on_step(step)

    def after_epoch(self) -> None:
        if not self.losses:  # `fit` skips the epochs that are already done
            return
        metrics = {metric.name: metric.value for metric in self.learn.metrics}
        # A step's loss may be finite and its gradient not.
        if not math.isfinite(metrics["loss"]):
            raise TrainingError(
                f"the validation loss became {metrics['loss']} in epoch {self._epochs_before + 1}: "
                "train again with a smaller --lr, or --lr auto"
            )
        patient_dice = metrics["patient_dice"]
        result = EpochResult(
            epoch=self._epochs_before + 1,
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
