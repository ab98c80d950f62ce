import numpy as np
import pytest
import torch
from fastai.learner import Learner
from torch import nn

from segmodel.archive.reader import Archive
from segmodel.core.errors import TrainingError
from segmodel.settings.training import TrainConfig
from segmodel.training.lr_range_test import RangeTest, range_test, suggest
from tests.support.device_waits import CountWaits, EndOfBatch
from tests.support.tiny_training import learner_of, recipe, run


def test_the_suggestion_lies_where_a_known_curve_falls_steadily() -> None:
    """Flat up to 1e-5, then one down per tenfold up to 1e-2, then up: the middle is 10^-3.5."""
    lrs = np.logspace(-7, 0, 141)
    exponents = np.log10(lrs)
    losses = np.where(
        exponents < -5, 3.0, np.where(exponents < -2, 3.0 - (exponents + 5), 10.0 * (exponents + 2))
    )
    # fastai's rule takes the middle of the valley: a third and half a third of the way.
    falls = 1e-5 * 10 ** (3 * 0.5)
    assert suggest(lrs.tolist(), losses.tolist()) == pytest.approx(falls, rel=0.2)


class Walk(nn.Module):
    """Answers with its only parameter, which begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1))

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        return self.position


@pytest.mark.parametrize("target", [0.1, 0.001])
def test_the_suggestion_on_a_walk_of_known_length_lies_before_its_end(
    squares: Archive, target: float
) -> None:
    """The loss is the distance to `target`.

    Adam moves by one learning rate per step while the slope stays the same. The rates are a
    geometric series of ratio r: their sum reaches the target at a rate of target * (r - 1).
    """
    config = recipe(lr=1e-3)
    learner = learner_of(squares, config, Walk())
    learner.loss_func = lambda position, mask: (position - target).abs().mean()
    found = range_test(
        learner, config, lr_min=1e-7, lr_max=1.0, steps=100, on_step=lambda step: None
    )
    ratio = 10 ** (7 / 99)
    end = target * (ratio - 1)
    assert found.lrs[int(np.argmin(found.losses))] == pytest.approx(end, rel=ratio - 1)
    assert 1e-6 < found.suggestion < end


def test_a_training_at_the_suggested_rate_beats_a_tenth_and_a_thousand_times_of_it(
    squares: Archive,
) -> None:
    config = recipe(lr=1e-3)
    suggestion = range_test(
        learner_of(squares, config),
        config,
        lr_min=1e-6,
        lr_max=10.0,
        steps=100,
        on_step=lambda step: None,
    ).suggestion
    ends = []
    for factor in (0.1, 1, 1000):
        config = recipe(epochs=10, lr=factor * suggestion)
        ends.append(run(learner_of(squares, config), config)[1][-1].train_loss)
    assert ends[1] < ends[0] / 1.5
    assert ends[1] < ends[2] / 1.5


def test_a_curve_that_never_falls_suggests_nothing() -> None:
    with pytest.raises(TrainingError, match="the loss never fell"):
        suggest(np.logspace(-7, 0, 50).tolist(), np.linspace(1, 2, 50).tolist())


def test_a_test_that_diverges_at_once_suggests_nothing() -> None:
    with pytest.raises(TrainingError, match="diverged after 5 steps"):
        suggest([1e-3] * 5, [1.0] * 5)


def ranged(learner: Learner, config: TrainConfig) -> RangeTest:
    return range_test(learner, config, lr_min=1e-6, lr_max=1.0, steps=60, on_step=lambda step: None)


def test_a_range_test_leaves_network_and_optimizer_as_they_were(squares: Archive) -> None:
    config = recipe(epochs=2, lr=1e-3)
    untouched, tested = learner_of(squares, config), learner_of(squares, config)
    for learner in (untouched, tested):  # so that there are moments that a range test could change
        run(learner, config)
    found = ranged(tested, config)
    assert found.lrs[0] == pytest.approx(1e-6)
    assert found.lrs[1] / found.lrs[0] == pytest.approx(1e6 ** (1 / 59))
    assert 1e-5 < found.suggestion < 0.5
    assert run(tested, config)[0] == run(untouched, config)[0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_of_a_range_test_waits_for_the_device(squares: Archive, accumulate: int) -> None:
    config = recipe(lr=1e-3, accumulate=accumulate)
    learner = learner_of(squares, config)
    counted = CountWaits()
    learner.add_cbs([counted, EndOfBatch()])
    found = range_test(
        learner, config, lr_min=1e-7, lr_max=1e-3, steps=12, on_step=lambda step: None
    )
    assert len(found.lrs) == len(counted.of_training.fetched) == 12
    assert counted.of_training.found == {}


def test_a_loss_that_is_no_number_ends_the_test_and_is_not_in_it(squares: Archive) -> None:
    config = recipe(lr=1e-3)
    learner = learner_of(squares, config, Walk())
    losses = iter([0.5, 0.4, float("nan"), 0.3, 0.2])
    learner.loss_func = lambda position, mask: position.sum() * 0 + next(losses)
    found = range_test(
        learner, config, lr_min=1e-7, lr_max=1.0, steps=100, on_step=lambda step: None
    )
    assert found.losses == pytest.approx((0.5, 0.4))
    assert len(list(losses)) == 1  # the step after it was under way
