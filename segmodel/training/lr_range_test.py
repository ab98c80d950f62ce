"""The learning-rate range test: the loss while the learning rate grows from step to step.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017; the suggestion is fastai's `valley`.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.callback.schedule import valley
from fastai.learner import Learner

from segmodel.core.errors import TrainingError
from segmodel.settings.training import RecipeConfig
from segmodel.training.learner import EpochSeed, Place, optimizer_state, restore_optimizer

SMOOTHING = 0.98
DIVERGED = 4.0
"""The test ends once the smoothed loss is so many times its least."""
LEAST_STEPS = 10
WARM_UP_SHARE = 0.1
"""Of the steps: the first losses, whose smoothed mean is still of few batches, suggest nothing."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test came to."""

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    """Of each step's batch."""
    smoothed: tuple[float, ...]
    """Exponential moving average of `losses`, corrected for its start."""

    @property
    def suggestion(self) -> float:
        """Learning rate in the longest valley of the smoothed loss, where it falls steadily.

        Raises:
            TrainingError: the loss is no number from the first steps on, or never falls.
        """
        return suggest(self.lrs, self.smoothed)


class _Range(Callback):
    """Sets the learning rate of each step and keeps its loss."""

    order = 55

    def __init__(
        self, lr_min: float, lr_max: float, steps: int, passes: int, on_step: Callable[[int], None]
    ) -> None:
        self.lr_min, self.lr_max, self.steps, self.passes, self.on_step = (
            lr_min,
            lr_max,
            steps,
            passes,
            on_step,
        )
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.average = 0.0
        self.of_passes: list[float] = []

    def before_batch(self) -> None:
        self.rate = self.lr_min * (self.lr_max / self.lr_min) ** (len(self.lrs) / (self.steps - 1))
        self.learn.opt.set_hyper("lr", self.rate)

    def after_loss(self) -> None:
        self.of_passes.append(float(self.learn.loss.detach()))  # the same on all workers

    def after_batch(self) -> None:
        if len(self.of_passes) < self.passes:
            return
        loss = sum(self.of_passes) / self.passes
        self.of_passes = []
        if not math.isfinite(loss):
            raise CancelFitException
        self.lrs.append(self.rate)
        self.losses.append(loss)
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * loss
        self.smoothed.append(self.average / (1 - SMOOTHING ** len(self.losses)))
        self.on_step(len(self.lrs))
        diverged = len(self.lrs) >= LEAST_STEPS and self.smoothed[-1] > DIVERGED * min(
            self.smoothed
        )
        if len(self.lrs) == self.steps or diverged:
            raise CancelFitException

    def before_validate(self) -> None:
        raise CancelValidException


def range_test(
    learner: Learner,
    recipe: RecipeConfig,
    place: Place,
    *,
    lr_min: float,
    lr_max: float,
    steps: int,
    on_step: Callable[[int], None],
) -> RangeTest:
    """Run a range test; network and optimizer are afterwards what they were.

    Args:
        learner: from `build_learner`.
        recipe: of the learner.
        place: of the learner.
        lr_min: learning rate of the first step; each is the one before times a constant.
        lr_max: of the last.
        steps: optimizer steps.
        on_step: called with the number of each step.
    """
    weights, optimizer = copy.deepcopy(learner.model.state_dict()), optimizer_state(learner)
    record = _Range(lr_min, lr_max, steps, recipe.accumulate, on_step)
    epochs = -(-steps * recipe.accumulate // len(learner.dls[0]))
    with learner.no_logging():
        learner.fit(
            epochs,
            lr_min,
            wd=[recipe.weight_decay, 0.0],
            cbs=[record, EpochSeed(learner.dls[0].sampler, recipe.seed, place.rank, first_epoch=0)],
        )
    learner.model.load_state_dict(weights)
    restore_optimizer(learner, optimizer)
    learner.opt.zero_grad()
    return RangeTest(tuple(record.lrs), tuple(record.losses), tuple(record.smoothed))


def suggest(lrs: Sequence[float], smoothed: Sequence[float]) -> float:
    """A learning rate half way down the longest valley of the loss.

    Raises:
        TrainingError: there are too few steps, or there is no valley.
    """
    skip = int(len(lrs) * WARM_UP_SHARE)
    lrs, smoothed = list(lrs)[skip:], list(smoothed)[skip:]
    if len(lrs) < LEAST_STEPS:
        raise TrainingError(
            f"the learning-rate range test diverged after {len(lrs)} steps: start it from a smaller --lr-min, or check the data"
        )
    if min(smoothed) >= smoothed[0]:
        raise TrainingError(
            "the loss never fell in the learning-rate range test: give --lr a number, or test up to a larger --lr-max"
        )
    return float(valley(lrs, smoothed, len(lrs))[0])
