import numpy as np
import pytest

from segmodel.core.dice import (
    EpochResult,
    PatientDice,
    best_epoch,
    dice,
    dice_of_counts,
    tumor_patient_mean,
)


def test_dice_is_twice_the_overlap_over_the_sum_of_sizes() -> None:
    predicted = np.array([[1, 1, 1], [0, 0, 0]], dtype=bool)
    truth = np.array([[0, 1, 1], [1, 1, 1]], dtype=bool)
    assert dice(predicted, truth) == pytest.approx(2 * 2 / (3 + 5))
    assert dice(truth, predicted) == pytest.approx(0.5)


def test_dice_of_equal_masks_is_one_and_of_disjoint_masks_zero() -> None:
    mask = np.array([[[1, 0], [0, 1]]], dtype=bool)
    assert dice(mask, mask) == 1.0
    assert dice(mask, ~mask) == 0.0


def test_dice_is_one_only_where_both_masks_are_empty() -> None:
    empty, one = np.zeros((2, 2), dtype=bool), np.array([[0, 0], [0, 1]], dtype=bool)
    assert dice(empty, empty) == 1.0
    assert dice(empty, one) == 0.0
    assert dice(one, empty) == 0.0


def test_dice_refuses_masks_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(4, 4\)"):
        dice(np.ones((1, 4), dtype=bool), np.ones((4, 4), dtype=bool))


def test_dice_of_counts_agrees_with_hand_counts() -> None:
    assert dice_of_counts(intersection=3, predicted=4, truth=8) == pytest.approx(0.5)
    assert dice_of_counts(intersection=0, predicted=0, truth=0) == 1.0


def epoch(number: int, dice: float, valid_loss: float) -> EpochResult:
    return EpochResult(number, 1.0, valid_loss, dice, 0.5, 1.0, 1.0)


def test_the_best_epoch_has_the_highest_dice_whatever_its_loss() -> None:
    assert best_epoch([epoch(1, 0.5, 0.1), epoch(2, 0.6, 9.0), epoch(3, 0.4, 0.0)]).epoch == 2


def test_epochs_of_equal_dice_are_told_apart_by_their_validation_loss() -> None:
    assert best_epoch([epoch(1, 0.0, 0.9), epoch(2, 0.0, 0.7), epoch(3, 0.0, 0.8)]).epoch == 2
    assert best_epoch([epoch(1, 0.0, 0.7), epoch(2, 0.0, 0.7)]).epoch == 1


def test_the_mean_over_patients_with_tumor_leaves_out_those_where_nothing_is_to_find() -> None:
    healthy, found, missed = PatientDice(1.0, 0), PatientDice(0.75, 9), PatientDice(0.25, 1)
    assert tumor_patient_mean([healthy, found, missed]) == 0.5
    assert tumor_patient_mean([healthy]) is None
