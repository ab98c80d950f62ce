"""Overlap of a segmentation with the truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def dice_of_counts(intersection: float, predicted: float, truth: float) -> float:
    """Dice coefficient (DSC), 2|A∩B| / (|A|+|B|), from numbers of voxels; 1 where both sets are empty.

    Source: Dice, "Measures of the amount of ecologic association between species", Ecology 26 (1945).
    """
    if predicted + truth == 0:
        return 1.0
    return 2.0 * intersection / (predicted + truth)


def dice(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks of the same shape, any number of axes.

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of different shapes: {predicted.shape} and {truth.shape}")
    return dice_of_counts(int((predicted & truth).sum()), int(predicted.sum()), int(truth.sum()))


@dataclass(frozen=True)
class Step:
    """What one optimizer step came to."""

    step: int
    """Of the whole training; 1 is the first."""
    epoch: int
    lr: float
    momentum: float
    loss: float
    """Of the step's whole batch, the slices of all workers."""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch came to; the same on all workers."""

    epoch: int
    """1 is the first."""
    train_loss: float
    """Mean over the epoch's steps."""
    valid_loss: float
    """Of all validation voxels together."""
    dice: float
    """Of all validation voxels together."""
    patient_dice: float
    """Mean of the validation patients' 3D Dice."""
    slices_per_second: float
    """Of the training steps, all workers together."""
    seconds: float
    """Of training and validation."""


def best_epoch(history: Sequence[EpochResult]) -> EpochResult:
    """The first epoch with the highest Dice; its weights are in best/."""
    return max(history, key=lambda result: result.dice)
