"""What a person should look at first: a score and its reasons for each series.

The score is 1 minus an estimate of the Dice. With a mask, the estimate is the mean tumor
probability in the mask, or what the mask can reach at most (`largest_dice`) if that is less.
Without a mask, the estimate falls with the sum of all probabilities. A series of which nothing
could be segmented has the score 1. The reasons say in words what is odd about a series. They do
not change the score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segmodel.core.rounding import ml_text

MEASURABLE_VOXELS = 100.0
"""A ball of 10 mm at 1 x 1 x 5 mm: the smallest lesion that RANO calls measurable.

Source: Wen et al., Updated response assessment criteria for high-grade gliomas, J Clin Oncol 2010.
"""
LARGEST_ML = 500.0
"""No glioma is taken to be larger.

The largest third of BraTS's 1,251 cases has 163 ml on average, with a standard deviation of 35 ml
(a retrospective analysis in Frontiers in Surgery).
"""
WHOLE_PIECE = 0.9
"""Share of a mask in its largest piece below which the pieces are a reason to look.

It is 0.97 or more in the annotations of each of 32 patients of the LGG data set.
"""
LOW_DICE = 0.7
"""An estimate below this is a reason to look."""
MIN_PATIENTS = 10
"""A cohort of fewer says nothing about what is usual."""
OUTLIER_Z = 3.5
"""Least modified z-score of an outlier, by Iglewicz and Hoaglin, How to Detect and Handle Outliers
(1993)."""
JUMPS_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """What is known of one series."""

    patient_id: str
    slices: int
    missing: int
    duplicated: int
    tumor_voxels: int
    volume_ml: float | None
    largest_piece_voxels: int | None
    """Of the largest connected piece of the mask; None where that is not known."""
    estimated_dice: float | None
    """From `estimate_dice`; None without slices."""
    touches_border: bool
    jumps: Sequence[int]
    """Indices of slices between which and the next the mask jumps."""


@dataclass(frozen=True)
class Review:
    """How soon to look at a series, and why."""

    score: float
    """0 to 1, four decimals."""
    reasons: tuple[str, ...]


def estimate_dice(probability_sum: float, probability_in_mask: float, tumor_voxels: int) -> float:
    """Estimate the Dice of a mask from the probabilities p of the model that made it; 0 to 1.

    The expected Dice is 2 Σ p m / (Σ p + Σ m), m being the mask. Over a whole series, Σ p is
    mostly the sum of tiny probabilities of background, which say nothing of the tumor. So the
    tumor is taken to be as large as the mask, Σ p = Σ m. What is left is the mean probability in
    the mask.

    Without a mask, the estimate is 1 / (1 + Σ p / `MEASURABLE_VOXELS`): one half where the model
    expects as much tumor as the smallest lesion that counts.

    Args:
        probability_sum: of the tumor probabilities of all voxels, Σ p.
        probability_in_mask: of those in the mask, Σ p m.
        tumor_voxels: of the mask, Σ m.
    """
    if tumor_voxels:
        return min(1.0, probability_in_mask / tumor_voxels)
    return 1 / (1 + probability_sum / MEASURABLE_VOXELS)


def largest_dice(finding: Finding) -> float:
    """The largest Dice that a mask can have with a glioma.

    A glioma is one connected piece, with rare exceptions, and is not larger than `LARGEST_ML`. A
    mask of n voxels that holds all t voxels of a tumor has a Dice of 2 t / (n + t).
    """
    pieces, volume = _largest_piece(finding), finding.volume_ml or 0.0
    return min(2 * pieces / (1 + pieces), 2 * LARGEST_ML / (volume + LARGEST_ML), 1.0)


def _largest_piece(finding: Finding) -> float:
    """Share of the mask that lies in its largest piece; 1 where that is not known."""
    if not finding.tumor_voxels or finding.largest_piece_voxels is None:
        return 1.0
    return finding.largest_piece_voxels / finding.tumor_voxels


def review(findings: Sequence[Finding]) -> list[Review]:
    """Review each finding, in their order; all findings together are the cohort."""
    sizes = {n: f.volume_ml for n, f in enumerate(findings) if f.volume_ml}
    odd_sizes = _outliers(findings, sizes, {n: float(np.log(ml)) for n, ml in sizes.items()})
    reviews = []
    for number, finding in enumerate(findings):
        reasons = _own_reasons(finding)
        if number in odd_sizes:
            reasons.append(
                f"volume is an outlier of this cohort ({ml_text(sizes[number])}, "
                f"the median is {ml_text(odd_sizes[number])})"
            )
        estimate = min(finding.estimated_dice or 0.0, largest_dice(finding))
        reviews.append(Review(round(1.0 - estimate, 4), tuple(reasons)))
    return reviews


def modified_z(values_n: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distance of each value from the median, in robust standard deviations.

    0 for all where over half of them are equal. Source: 0.6745 (x - median) / MAD, Iglewicz and
    Hoaglin (1993).
    """
    distance_n = values_n - np.median(values_n)
    mad = np.median(np.abs(distance_n))
    return np.zeros_like(values_n) if mad == 0 else 0.6745 * distance_n / mad


def _own_reasons(finding: Finding) -> list[str]:
    """The reasons that need no cohort."""
    reasons = []
    if not finding.slices:
        reasons.append("no slice could be segmented")
    if finding.missing:
        reasons.append(f"{finding.missing} slice{'s' if finding.missing > 1 else ''} missing")
    if finding.duplicated:
        reasons.append(
            f"{finding.duplicated} slice{'s' if finding.duplicated > 1 else ''} duplicated"
        )
    if finding.slices and not finding.tumor_voxels:
        reasons.append("no tumor found")
    if finding.volume_ml is not None and finding.volume_ml > LARGEST_ML:
        reasons.append(f"volume is larger than gliomas get ({ml_text(finding.volume_ml)})")
    if (share := _largest_piece(finding)) < WHOLE_PIECE:
        reasons.append(f"mask is in pieces: the largest holds {share:.0%} of it")
    if finding.estimated_dice is not None and finding.estimated_dice < LOW_DICE:
        reasons.append(
            f"the model is unsure of its mask: it expects a Dice of {finding.estimated_dice:.2f}"
        )
    if finding.jumps:
        named = ", ".join(f"{index} and {index + 1}" for index in finding.jumps[:JUMPS_NAMED])
        more = len(finding.jumps) - JUMPS_NAMED
        reasons.append(
            f"mask jumps between slices {named}" + (f" and {more} more" if more > 0 else "")
        )
    if finding.touches_border:
        reasons.append("tumor touches the image border")
    return reasons


def _outliers(
    findings: Sequence[Finding], shown: dict[int, float], compared: dict[int, float]
) -> dict[int, float]:
    """Numbers of findings whose `compared` value is an outlier, each with the median of `shown`.

    None in a small cohort.
    """
    if len({findings[number].patient_id for number in compared}) < MIN_PATIENTS:
        return {}
    z_n = modified_z(np.array(list(compared.values()), dtype=np.float64))
    median = float(np.median(list(shown.values())))
    return {number: median for number, z in zip(compared, z_n, strict=True) if abs(z) > OUTLIER_Z}
