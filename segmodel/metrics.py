"""Overlap of a segmentation with the truth."""

from collections.abc import Iterable

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
    return dice_of_counts(np.count_nonzero(predicted & truth), np.count_nonzero(predicted), np.count_nonzero(truth))


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
