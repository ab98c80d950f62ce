"""How well a mask agrees with the truth, for one series in 3D.

Distances are those of the library surface-distance: surfaces are the polygons between voxels, each
weighted by its area, so that anisotropic voxels count as they should. HD95 is the larger of the two
directed 95th percentiles. Other tools weight each surface voxel alike or pool both directions, and
differ from these values; see docs/evaluate.md.

Empty masks: if both are empty, Dice and IoU are 1 and all else that compares surfaces or voxels of
tumor is None. If one is empty, Dice, IoU and NSD are 0 and the distances are None.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from segmodel.analysis.tumor_shape import CONNECTIVITY_26, Mask

PERCENTILE = 95.0


@dataclass(frozen=True)
class Overlap:
    """Voxels of truth and prediction."""

    both: int
    truth: int
    predicted: int

    @property
    def dice(self) -> float:
        """Twice the shared voxels over the sum of both; 1 if both are empty."""
        total = self.truth + self.predicted
        return 2 * self.both / total if total else 1.0

    @property
    def iou(self) -> float:
        """Shared voxels over those of either mask; 1 if both are empty."""
        union = self.truth + self.predicted - self.both
        return self.both / union if union else 1.0

    @property
    def precision(self) -> float | None:
        """Share of the predicted voxels that are tumor; None without a predicted one."""
        return self.both / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of the tumor's voxels that are predicted; None without tumor."""
        return self.both / self.truth if self.truth else None


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the surfaces of truth and prediction; each None where it does not exist."""

    hd95: float | None
    """95th percentile of the Hausdorff distance."""
    average: float | None
    """Average symmetric surface distance (ASSD): over both surfaces together."""
    nsd: float | None
    """Normalised surface Dice: share of both surfaces within the tolerance of the other."""


@dataclass(frozen=True)
class Lesion:
    """One connected piece of tumor, of the truth or of the prediction."""

    of_truth: bool
    voxels: int
    overlap: int
    """Voxels that truth and prediction share in it."""
    centre: tuple[float, float, float]
    """(slice, row, column) from 0, its centre of mass."""

    @property
    def found(self) -> bool:
        """Whether the other mask has at least one voxel in it."""
        return self.overlap > 0


def overlap(truth: Mask, predicted: Mask) -> Overlap:
    """Count voxels.

    Args:
        truth: bool, (slices, rows, columns).
        predicted: the same shape.
    """
    return Overlap(
        int(np.count_nonzero(truth & predicted)),
        int(np.count_nonzero(truth)),
        int(np.count_nonzero(predicted)),
    )


def surface_distances(
    truth: Mask, predicted: Mask, spacing: tuple[float, float, float], tolerance: float
) -> SurfaceDistances:
    """Distances between two surfaces.

    Args:
        truth: bool, (slices, rows, columns).
        predicted: the same shape.
        spacing: distance between voxel centres along the same axes, in mm, or 1 for voxels.
        tolerance: of the normalised surface Dice, in the unit of `spacing`.
    """
    if not truth.any() or not predicted.any():
        neither = not truth.any() and not predicted.any()
        return SurfaceDistances(None, None, None if neither else 0.0)
    from surface_distance import metrics as library

    with warnings.catch_warnings():
        # It calls scipy.ndimage by names that have moved.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        found: dict[str, Any] = library.compute_surface_distances(truth, predicted, spacing)
    distances = np.concatenate([found["distances_gt_to_pred"], found["distances_pred_to_gt"]])
    areas = np.concatenate([found["surfel_areas_gt"], found["surfel_areas_pred"]])
    return SurfaceDistances(
        float(library.compute_robust_hausdorff(found, PERCENTILE)),
        float((distances * areas).sum() / areas.sum()),
        float(library.compute_surface_dice_at_tolerance(found, tolerance)),
    )


def lesions(truth: Mask, predicted: Mask) -> list[Lesion]:
    """The connected pieces of both masks, those of the truth first.

    Args:
        truth: bool, (slices, rows, columns).
        predicted: the same shape.
    """
    return [*_pieces(truth, predicted, True), *_pieces(predicted, truth, False)]


def _pieces(mask: Mask, other: Mask, of_truth: bool) -> list[Lesion]:
    labels, count = ndimage.label(mask, structure=CONNECTIVITY_26)
    if not count:
        return []
    # Only the voxels of the mask, not the whole volume: three times as fast.
    voxel_nx = np.argwhere(mask)
    piece_n = labels[mask] - 1
    voxels = np.bincount(piece_n, minlength=count)
    shared = np.bincount(piece_n, weights=other[mask], minlength=count)
    sums = [np.bincount(piece_n, weights=axis_n, minlength=count) for axis_n in voxel_nx.T]
    return [
        Lesion(of_truth, int(size), int(common), (d / size, h / size, w / size))
        for size, common, d, h, w in zip(
            voxels.tolist(), shared, *(axis.tolist() for axis in sums), strict=True
        )
    ]
