"""Overlap of a segmentation with the truth."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


def dice_of_counts(intersection: float, predicted: float, truth: float) -> float:
    """Dice coefficient (DSC), 2|A∩B| / (|A|+|B|), of voxel counts; 1 where both sets are empty.

    Source: Dice, "Measures of the amount of ecologic association between species", Ecology 26,
    1945.
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


class PatientDice(NamedTuple):
    """3D Dice of one patient."""

    dice: float
    tumor_voxels: int
    """Tumor voxels of the true mask. If there are none, Dice is 1 or 0 and shows no accuracy."""


def tumor_patient_mean(patients: Iterable[PatientDice]) -> float | None:
    """Mean Dice of the patients with tumor; None if there is none."""
    with_tumor = [patient.dice for patient in patients if patient.tumor_voxels]
    return sum(with_tumor) / len(with_tumor) if with_tumor else None


@dataclass(frozen=True)
class Step:
    """The result of one optimizer step."""

    step: int
    """Of the whole training; 1 is the first."""
    epoch: int
    lr: float
    momentum: float
    loss: float
    """Of the step's whole batch, the slices of all workers."""


@dataclass(frozen=True)
class EpochResult:
    """The result of one epoch; the same on all workers."""

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
    tumor_patient_dice: float | None = None
    """Mean 3D Dice of the validation patients with tumor; None if there are none."""


def best_epoch(history: Sequence[EpochResult]) -> EpochResult:
    """The epoch with the highest Dice; ties go to the lower validation loss, then to the earlier.

    A network that has not found any tumor yet has a Dice of 0 in every epoch.
    """
    return max(history, key=lambda result: (result.dice, -result.valid_loss))
