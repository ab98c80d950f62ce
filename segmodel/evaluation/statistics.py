"""Statistics over patients: intervals, agreement of volumes, paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 20_240_501

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distribution:
    """One metric over patients; None where there are too few values."""

    count: int
    mean: float | None
    low: float | None
    """Lower end of the 95 % bootstrap interval of the mean, patients resampled."""
    high: float | None
    std: float | None
    """Sample standard deviation."""
    median: float | None
    first_quartile: float | None
    third_quartile: float | None


@dataclass(frozen=True)
class Agreement:
    """How two measurements of the same volumes agree, as Bland and Altman, and Lin, define it."""

    count: int
    bias: float | None
    """Mean of predicted minus true."""
    lower_limit: float | None
    """Bias minus 1.96 standard deviations of the differences."""
    upper_limit: float | None
    concordance: float | None
    """Lin's concordance correlation coefficient; None where both are constant."""


@dataclass(frozen=True)
class PairedDifference:
    """Two segmentations of the same patients; None where the test does not exist."""

    count: int
    mean: float | None
    low: float | None
    """Lower end of the 95 % bootstrap interval of the mean difference."""
    high: float | None
    wilcoxon_p: float | None
    """Two-sided Wilcoxon signed-rank test; 1 where no pair differs."""


def distribution(values: Sequence[float | None]) -> Distribution:
    """Describe the values that are there; None counts for nothing."""
    known = _known(values)
    if not known.size:
        return Distribution(0, None, None, None, None, None, None, None)
    first, median, third = (float(q) for q in np.quantile(known, [0.25, 0.5, 0.75]))
    low, high = _interval(known)
    std = float(known.std(ddof=1)) if known.size > 1 else None
    return Distribution(known.size, float(known.mean()), low, high, std, median, first, third)


def agreement(true: Sequence[float], predicted: Sequence[float]) -> Agreement:
    """Agreement of two measurements, such as volumes in ml.

    Args:
        true: one value a patient.
        predicted: the same patients in the same order.
    """
    x, y = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    if x.size < 2:
        bias = float((y - x).mean()) if x.size else None
        return Agreement(x.size, bias, None, None, None)
    differences = y - x
    bias, spread = float(differences.mean()), 1.96 * float(differences.std(ddof=1))
    covariance = float(((x - x.mean()) * (y - y.mean())).mean())
    scale = float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    concordance = 2 * covariance / scale if scale > 0 else None
    return Agreement(x.size, bias, bias - spread, bias + spread, concordance)


def paired_difference(
    first: Sequence[float | None], second: Sequence[float | None]
) -> PairedDifference:
    """Second minus first, over the patients that have both values."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        return PairedDifference(0, None, None, None, None)
    differences = np.array([b - a for a, b in pairs], np.float64)
    low, high = _interval(differences)
    return PairedDifference(
        differences.size, float(differences.mean()), low, high, _wilcoxon(differences)
    )


def _known(values: Sequence[float | None]) -> Numbers:
    return np.array([value for value in values if value is not None], np.float64)


def _interval(values: Numbers) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap interval of the mean; None for a single value."""
    if values.size < 2:
        return None, None
    generator = np.random.default_rng(SEED)
    means = np.empty(RESAMPLES)
    portion = max(1, 2**22 // values.size)  # resamples at a time: 32 MB, however many patients
    for start in range(0, RESAMPLES, portion):
        stop = min(start + portion, RESAMPLES)
        drawn = generator.integers(0, values.size, (stop - start, values.size))
        means[start:stop] = values[drawn].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _wilcoxon(differences: Numbers) -> float | None:
    from scipy.stats import wilcoxon

    if differences.size < 2:
        return None
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences).pvalue)
