"""The learning-rate range test: train a few steps while the learning rate grows, watch the loss.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017. The suggestion is
fastai's `valley`.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.callback.schedule import valley
from fastai.learner import Learner
from torch import Tensor

from segmodel.core.errors import TrainingError
from segmodel.settings.training import RecipeConfig
from segmodel.training.callbacks import PendingLoss, SetEpoch
from segmodel.training.learner import optimizer_state, restore_optimizer

SMOOTHING = 0.98
"""Weight of the earlier losses in the moving average."""
DIVERGED = 4.0
"""The test ends when the smoothed loss exceeds its minimum by this factor."""
LEAST_STEPS = 10
WARM_UP_SHARE = 0.1
"""Share of the steps, at the start, that the suggestion ignores: their average is of few losses."""


@dataclass(frozen=True)
class RangeTest:
    """The results of a range test."""

    lrs: tuple[float, ...]
    """Learning rate of each step."""
    losses: tuple[float, ...]
    """Loss of each step's batch."""
    smoothed: tuple[float, ...]
    """Exponential moving average of `losses`, corrected for its start at 0."""

    @property
    def suggestion(self) -> float:
        """A learning rate at which the smoothed loss falls steadily.

        Raises:
            TrainingError: the loss became NaN or infinite in the first steps, or never fell.
        """
        return suggest(self.lrs, self.smoothed)


class _RaiseLearningRate(Callback):
    """Sets the learning rate of each step and records its loss.

    As in a training, a step's loss is read while the next step runs on the device.
    """

    order = 55

    def __init__(
        self, lr_min: float, lr_max: float, steps: int, passes: int, on_step: Callable[[int], None]
    ) -> None:
        self.lr_min, self.lr_max, self.steps = lr_min, lr_max, steps
        self.passes, self.on_step = passes, on_step
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.average = 0.0
        self.begun = 0
        self.pass_losses: list[Tensor] = []
        self.pending: tuple[float, PendingLoss] | None = None

    def before_batch(self) -> None:
        self.rate = self.lr_min * (self.lr_max / self.lr_min) ** (self.begun / (self.steps - 1))
        self.learn.opt.set_hyper("lr", self.rate)

    def after_loss(self) -> None:
        self.pass_losses.append(self.learn.loss.detach())  # the same on all workers

    def after_batch(self) -> None:
        if len(self.pass_losses) < self.passes:
            return
        self.begun += 1
        loss = PendingLoss(torch.stack(self.pass_losses).mean())
        previous, self.pending = self.pending, (self.rate, loss)
        self.pass_losses = []
        self._record(previous)
        if self.begun == self.steps:
            self._record(self.pending)
            raise CancelFitException

    def _record(self, pending: tuple[float, PendingLoss] | None) -> None:
        """Record a step, or end the test if its loss is not finite or the test diverged."""
        if pending is None:
            return
        rate, loss = pending[0], pending[1].value()
        if not math.isfinite(loss):
            raise CancelFitException
        self.lrs.append(rate)
        self.losses.append(loss)
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * loss
        self.smoothed.append(self.average / (1 - SMOOTHING ** len(self.losses)))
        self.on_step(len(self.lrs))
        if len(self.lrs) >= LEAST_STEPS and self.smoothed[-1] > DIVERGED * min(self.smoothed):
            raise CancelFitException

    def before_validate(self) -> None:
        raise CancelValidException


def range_test(
    learner: Learner,
    recipe: RecipeConfig,
    *,
    lr_min: float,
    lr_max: float,
    steps: int,
    on_step: Callable[[int], None],
) -> RangeTest:
    """Run a range test, then restore network and optimizer.

    Args:
        learner: from `build_learner`.
        recipe: of the learner.
        lr_min: learning rate of the first step; it grows by a constant factor per step.
        lr_max: learning rate of the last step.
        steps: optimizer steps.
        on_step: called with the number of each step, from 1.
    """
    weights, optimizer = copy.deepcopy(learner.model.state_dict()), optimizer_state(learner)
    record = _RaiseLearningRate(lr_min, lr_max, steps, recipe.accumulate, on_step)
    epochs = -(-steps * recipe.accumulate // len(learner.dls[0]))
    with learner.no_logging():
        learner.fit(
            epochs,
            lr_min,
            wd=[recipe.weight_decay, 0.0],
            cbs=[record, SetEpoch(learner.dls[0].sampler, first_epoch=0)],
        )
    learner.model.load_state_dict(weights)
    restore_optimizer(learner, optimizer)
    learner.opt.zero_grad()
    return RangeTest(tuple(record.lrs), tuple(record.losses), tuple(record.smoothed))


def suggest(lrs: Sequence[float], smoothed: Sequence[float]) -> float:
    """Suggest a learning rate from the middle of the longest stretch in which the loss falls.

    Raises:
        TrainingError: there are too few steps, or the loss never falls.
    """
    skip = int(len(lrs) * WARM_UP_SHARE)
    lrs, smoothed = list(lrs)[skip:], list(smoothed)[skip:]
    if len(lrs) < LEAST_STEPS:
        raise TrainingError(
            f"the learning-rate range test diverged after {len(lrs)} steps: "
            "start it from a smaller --lr-min, or check the data"
        )
    if min(smoothed) >= smoothed[0]:
        raise TrainingError(
            "the loss never fell in the learning-rate range test: "
            "give --lr a number, or test up to a larger --lr-max"
        )
    return float(valley(lrs, smoothed, len(lrs))[0])
