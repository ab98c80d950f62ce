import itertools

import numpy as np
import pytest
from scipy.spatial import cKDTree, distance
from surface_distance import metrics as library

from segmodel.evaluation.metrics import (
    Mask,
    Overlap,
    lesions,
    overlap,
    surface_distances,
)
from tests.support.segmented import perturb

SPACING = (5.5, 0.9, 0.9)
"""Of a clinical series: thick slices, mm."""


def cube(start: int, stop: int, size: int = 12) -> Mask:
    mask = np.zeros((size, size, size), bool)
    mask[start:stop, start:stop, start:stop] = True
    return mask


def ball(radius: float, shift: int = 0, size: int = 40) -> Mask:
    d, h, w = np.indices((size, size, size)) - size // 2
    return (d - shift) ** 2 + h**2 + w**2 <= radius**2


def test_dice_and_the_others_of_two_voxels_that_share_one() -> None:
    truth, predicted = np.zeros((1, 1, 4), bool), np.zeros((1, 1, 4), bool)
    truth[0, 0, :3] = True  # 3 voxels
    predicted[0, 0, 2:] = True  # 2 voxels, one of them tumor
    counted = overlap(truth, predicted)
    assert counted == Overlap(both=1, truth=3, predicted=2)
    assert counted.dice == pytest.approx(2 / 5)
    assert counted.iou == pytest.approx(1 / 4)
    assert counted.precision == pytest.approx(1 / 2)
    assert counted.recall == pytest.approx(1 / 3)


def test_two_empty_masks_agree_and_have_no_distances() -> None:
    empty = np.zeros((3, 3, 3), bool)
    counted = overlap(empty, empty)
    assert (counted.dice, counted.iou) == (1, 1)
    assert (counted.precision, counted.recall) == (None, None)
    found = surface_distances(empty, empty, SPACING, 1.0)
    assert (found.hd95, found.average, found.nsd) == (None, None, None)


@pytest.mark.parametrize("swapped", [False, True])
def test_one_empty_mask_has_dice_0_and_no_distance(swapped: bool) -> None:
    masks = [cube(3, 6), np.zeros((12, 12, 12), bool)]
    truth, predicted = reversed(masks) if swapped else masks
    assert overlap(truth, predicted).dice == 0
    found = surface_distances(truth, predicted, SPACING, 1.0)
    assert (found.hd95, found.average, found.nsd) == (None, None, 0)


def test_equal_masks_have_distance_0_and_nsd_1() -> None:
    found = surface_distances(cube(3, 7), cube(3, 7), SPACING, 1.0)
    assert (found.hd95, found.average, found.nsd) == (0, 0, 1)


def slab(rows: int, size: int = 30) -> Mask:
    """The lower part of a volume, its surface one plane but for the rim."""
    mask = np.zeros((size, size, size), bool)
    mask[:rows] = True
    return mask


@pytest.mark.parametrize(("spacing_mm", "shift", "expected"), [(1.0, 2, 2.0), (5.5, 1, 5.5)])
def test_a_plane_moved_by_slices_is_their_spacing_away(
    spacing_mm: float, shift: int, expected: float
) -> None:
    found = surface_distances(slab(10), slab(10 + shift), (spacing_mm, 1.0, 1.0), 1.0)
    assert found.hd95 == pytest.approx(expected)


def test_a_tolerance_of_the_shift_makes_the_moved_plane_agree() -> None:
    near = surface_distances(slab(10), slab(11), (2.0, 1.0, 1.0), 2.0)
    far = surface_distances(slab(10), slab(11), (2.0, 1.0, 1.0), 1.9)
    assert near.nsd == 1
    assert far.nsd is not None
    assert far.nsd < 0.8


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (0.8, 0.9, 5.5)])
def test_distances_agree_with_monai_up_to_the_weights_of_surfaces(
    spacing: tuple[float, float, float],
) -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    truth, predicted = ball(10), ball(12, shift=1)
    ours = surface_distances(truth, predicted, spacing, 1.0)
    a, b = (torch.tensor(mask)[None, None].float() for mask in (predicted, truth))
    hd95 = compute_hausdorff_distance(a, b, percentile=95, spacing=list(spacing)).item()
    nsd = compute_surface_dice(
        a, b, [1.0], include_background=True, spacing=list(spacing), use_subvoxels=True
    ).item()
    assert ours.nsd == pytest.approx(nsd, abs=1e-6)
    # MONAI counts each surface voxel once and measures between voxel centres, not between surfaces.
    assert ours.hd95 == pytest.approx(hd95, abs=max(spacing))


def wobbly(seed: int) -> tuple[Mask, Mask]:
    """A tumor of two pieces and a prediction whose border wobbles."""
    truth = ball(8, size=32) | ball(4, shift=10, size=32)
    return truth, perturb(truth, 0.5, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(3))
def test_dice_and_iou_agree_with_scipy_to_1e_9_and_with_monai(seed: int) -> None:
    import torch
    from monai.metrics import compute_dice, compute_iou

    truth, predicted = wobbly(seed)
    ours = overlap(truth, predicted)
    assert 0.4 < ours.dice < 0.99
    # scipy has distances: 1 minus the coefficient.
    flat = truth.ravel(), predicted.ravel()
    assert ours.dice == pytest.approx(1 - distance.dice(*flat), abs=1e-9)
    assert ours.iou == pytest.approx(1 - distance.jaccard(*flat), abs=1e-9)
    # MONAI computes in single precision, whatever it is given.
    a, b = (torch.tensor(mask)[None, None].double() for mask in (predicted, truth))
    assert ours.dice == pytest.approx(compute_dice(a, b).item(), abs=1e-7)
    assert ours.iou == pytest.approx(compute_iou(a, b).item(), abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_distances_of_wobbly_borders_agree_with_monai(
    seed: int, spacing: tuple[float, float, float]
) -> None:
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    truth, predicted = wobbly(seed)
    ours = surface_distances(truth, predicted, spacing, 1.0)
    a, b = (torch.tensor(mask)[None, None].float() for mask in (predicted, truth))
    axes = list(spacing)
    nsd = compute_surface_dice(
        a, b, [1.0], include_background=True, spacing=axes, use_subvoxels=True
    ).item()
    hd95 = compute_hausdorff_distance(a, b, percentile=95, spacing=axes).item()
    average = compute_average_surface_distance(a, b, symmetric=True, spacing=axes).item()
    assert ours.nsd == pytest.approx(nsd, abs=1e-6)
    assert ours.hd95 == pytest.approx(hd95, abs=max(spacing))
    assert ours.average == pytest.approx(average, abs=max(spacing) / 2)


def boundary_corners(mask: Mask, spacing: tuple[float, float, float]) -> np.ndarray:
    """Voxel corners with some, but not all, of their eight voxels in the mask, mm."""
    padded = np.pad(mask, 1)
    depth, height, width = (size + 1 for size in mask.shape)
    shared = sum(
        padded[d : d + depth, h : h + height, w : w + width].astype(int)
        for d, h, w in itertools.product((0, 1), repeat=3)
    )
    return np.argwhere((shared > 0) & (shared < 8)) * np.array(spacing)


def largest_distance(truth: Mask, predicted: Mask, spacing: tuple[float, float, float]) -> float:
    """The Hausdorff distance by searching, for every corner, the nearest of the other surface."""
    a, b = boundary_corners(truth, spacing), boundary_corners(predicted, spacing)
    return float(max(cKDTree(b).query(a)[0].max(), cKDTree(a).query(b)[0].max()))


@pytest.mark.filterwarnings("ignore:Please import")
def test_the_largest_distance_agrees_with_a_search_over_all_corners() -> None:
    truth, predicted = cube(3, 7), cube(4, 10)
    found = library.compute_surface_distances(truth, predicted, SPACING)
    largest = library.compute_robust_hausdorff(found, 100)
    assert largest == pytest.approx(largest_distance(truth, predicted, SPACING))


def test_lesions_are_found_missed_or_invented() -> None:
    truth, predicted = np.zeros((1, 9, 9), bool), np.zeros((1, 9, 9), bool)
    truth[0, 0:2, 0:2] = True  # 4 voxels, found by 1
    truth[0, 7, 7] = True  # missed
    predicted[0, 1, 1] = True
    predicted[0, 4, 4:6] = True  # invented
    found = lesions(truth, predicted)
    assert [(one.of_truth, one.voxels, one.overlap, one.found) for one in found] == [
        (True, 4, 1, True),
        (True, 1, 0, False),
        (False, 1, 1, True),
        (False, 2, 0, False),
    ]
    assert found[0].centre == (0, 0.5, 0.5)


def test_voxels_that_share_a_corner_are_one_lesion() -> None:
    mask = np.zeros((2, 2, 2), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert len(lesions(mask, np.zeros_like(mask))) == 1
