import pytest
import torch
from fastai.learner import Learner

from segmodel.archive.reader import Archive
from segmodel.training.learner import optimizer_state, restore_optimizer
from tests.support.tiny_training import learner_of, recipe, run


def test_a_tiny_network_learns_a_bright_square(squares: Archive) -> None:
    config = recipe(epochs=25, lr=3e-3)
    steps, results = run(learner_of(squares, config), config)
    assert [result.epoch for result in results] == list(range(1, 26))
    assert [step.step for step in steps] == list(range(1, 101))  # 16 slices are 4 steps of 4
    assert results[-1].dice > 0.9
    assert results[-1].patient_dice == pytest.approx(results[-1].dice)  # one validation patient
    assert results[-1].tumor_patient_dice == results[-1].patient_dice
    assert results[-1].train_loss < results[0].train_loss


def test_the_learning_rate_follows_1cycle_in_each_cycle(squares: Archive) -> None:
    config = recipe(epochs=[4, 8], lr=[1e-3, 1e-4])
    steps, _ = run(learner_of(squares, config), config)
    rates = [step.lr for step in steps]
    assert len(rates) == 16 + 32
    assert rates[0] == pytest.approx(1e-3 / 25)
    assert rates[4] == pytest.approx(1e-3)  # after a quarter of the cycle
    assert rates[16] == pytest.approx(1e-4 / 25)
    assert rates[16 + 8] == pytest.approx(1e-4)
    assert steps[4].momentum == pytest.approx(0.85)
    assert steps[16].epoch == 5


def test_a_training_that_goes_on_ends_where_it_would_have_without_the_break(
    squares: Archive,
) -> None:
    config = recipe(epochs=[2, 3], lr=[1e-3, 5e-4])
    whole = learner_of(squares, config)
    steps, results = run(whole, config)

    broken = learner_of(squares, config)
    kept: dict[str, object] = {}

    def keep(learn: Learner) -> None:
        weights = {name: value.clone() for name, value in learn.model.state_dict().items()}
        kept.update(weights=weights, optimizer=optimizer_state(learn))

    run(broken, config, stop_after=3, on_epoch=keep)  # in the middle of the second cycle
    resumed = learner_of(squares, config)
    resumed.model.load_state_dict(kept["weights"])
    restore_optimizer(resumed, kept["optimizer"])  # type: ignore[arg-type]
    steps_after, results_after = run(resumed, config, done=3)
    assert steps_after == steps[12:]
    assert [r.dice for r in results_after] == [r.dice for r in results[3:]]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
