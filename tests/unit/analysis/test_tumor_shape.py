from typing import Any

import numpy as np
import pytest

from segmodel.analysis.tumor_shape import (
    Box,
    Mask,
    Masks,
    Postprocessing,
    components,
    cut_out,
    jumps,
    measure,
    postprocess,
)
from segmodel.core.errors import GeometryError


def mask(*pixels: tuple[int, int], size: int = 8) -> Mask:
    """Tumor at these (row, column)."""
    mask_hw = np.zeros((size, size), dtype=bool)
    for row, column in pixels:
        mask_hw[row, column] = True
    return mask_hw


def square(side: int, row: int = 1, column: int = 1, size: int = 32) -> Mask:
    mask_hw = np.zeros((size, size), dtype=bool)
    mask_hw[row : row + side, column : column + side] = True
    return mask_hw


def box(masks: Masks) -> Box:
    found = cut_out(masks)
    assert found is not None
    return found


def test_voxels_that_share_only_a_corner_are_one_component() -> None:
    shape = measure({4: mask((2, 2)), 5: mask((3, 3))}, [4, 5])
    assert (shape.tumor_voxels, shape.slices_with_tumor, shape.largest_component_voxels) == (
        2,
        2,
        2,
    )


def test_voxels_two_apart_along_any_axis_are_two_components() -> None:
    for other in (
        {1: mask((2, 2), (2, 4))},
        {1: mask((2, 2), (4, 2))},
        {1: mask((2, 2)), 3: mask((2, 2))},
    ):
        assert components(box(other)).voxels_n.tolist() == [1, 1]


def test_the_largest_component_is_counted_over_all_its_slices() -> None:
    masks = {
        1: mask((1, 1), (1, 2), (6, 6)),
        2: mask((1, 1)),
        3: mask((6, 6)),
    }  # 3 voxels; (6, 6) twice, not neighbours
    assert measure(masks, [1, 2, 3]).largest_component_voxels == 3


def test_without_tumor_there_is_nothing_to_measure() -> None:
    for masks in ({}, {1: mask()}):
        shape = measure(masks, [1, 2])
        assert (
            shape.tumor_voxels,
            shape.largest_component_voxels,
            shape.touches_border,
            shape.jumps,
        ) == (0, 0, False, ())
        assert cut_out(masks) is None


@pytest.mark.parametrize(
    ("pixel", "touches"),
    [((0, 3), True), ((7, 3), True), ((3, 0), True), ((3, 7), True), ((1, 6), False)],
)
def test_tumor_in_the_first_or_last_row_or_column_touches_the_border(
    pixel: tuple[int, int], touches: bool
) -> None:
    assert measure({1: mask((3, 3)), 2: mask(pixel)}, [1, 2]).touches_border is touches


def test_a_mask_jumps_where_less_than_a_third_overlaps_with_its_neighbour() -> None:
    start = square(6)  # 36 pixels; moved by 4 columns 2 of its 6 columns stay, by 5 columns 1
    assert jumps(box({1: start, 2: square(6, column=5)}), [1, 2]) == []
    assert jumps(box({1: start, 2: square(6, column=6)}), [1, 2]) == [1]
    assert (
        jumps(box({1: start, 3: square(6, column=6)}), [1, 3]) == []
    )  # no neighbours: slice 2 is missing


def test_a_small_mask_inside_its_neighbour_or_elsewhere_is_no_jump() -> None:
    assert (
        jumps(box({1: square(5), 2: square(20)}), [1, 2]) == []
    )  # 25 of 400 pixels: a tumor begins
    assert jumps(box({1: square(4), 2: square(4, column=20)}), [1, 2]) == []  # 16 pixels each


def test_the_mask_jumps_where_tumor_vanishes_in_the_middle_of_a_long_series() -> None:
    whole = {index: square(10) for index in range(1, 12)}
    hole = {index: one for index, one in whole.items() if index != 6}
    assert jumps(box(whole), range(1, 12)) == []
    assert jumps(box(hole), range(1, 12)) == [5, 6]
    assert (
        jumps(box(hole), [index for index in range(1, 12) if index != 6]) == []
    )  # slice 6 is missing: nobody knows
    assert jumps(box(hole | {12: square(10)}), range(1, 14)) == [
        5,
        6,
        12,
    ]  # and a scan that goes on after the tumor's end


def test_only_slices_that_touch_belong_together_however_far_apart_the_others_are() -> None:
    masks = {1: square(10), 2: square(10), 10**6: square(9)} | {
        10**9 + n: square(10) for n in range(7)
    }
    shape = measure(masks, [*masks, 3, 10**6 - 1, 10**9 - 1])
    assert (shape.tumor_voxels, shape.largest_component_voxels) == (981, 700)
    assert shape.jumps == (
        2,
        10**6 - 1,
        10**9 - 1,
    )  # in slice 3 it is gone, in the other two it is not there yet
    kept = postprocess(masks, keep(keep_largest=True), None)
    assert [index for index, one in kept.items() if one.any()] == [10**9 + n for n in range(7)]


def test_a_tumor_of_few_slices_may_begin_and_end_abruptly() -> None:
    assert jumps(box({index: square(10) for index in range(3, 12)}), range(1, 20)) == []  # 9 slices


def test_a_ball_does_not_jump() -> None:
    row, column = np.mgrid[:32, :32]
    masks = {z: (row - 16) ** 2 + (column - 16) ** 2 + (z - 16) ** 2 <= 12**2 for z in range(32)}
    assert jumps(box(masks), range(32)) == []


def keep(**changes: Any) -> Postprocessing:
    return Postprocessing(**{"keep_largest": False, "min_volume_ml": None, **changes})


def test_only_the_largest_component_stays() -> None:
    masks = {1: mask((1, 1), (1, 2), (6, 6)), 2: mask((1, 1)), 4: mask((6, 6))}
    kept = postprocess(masks, keep(keep_largest=True), None)
    assert (kept[1] == mask((1, 1), (1, 2))).all()
    assert (kept[2] == masks[2]).all()
    assert not kept[4].any()


def test_components_below_the_smallest_volume_go_and_one_of_just_that_volume_stays() -> None:
    masks = {
        1: mask((1, 1), (1, 2), (4, 4), (4, 5), (5, 4), (7, 7))
    }  # 2, 3 and 1 voxels of 100 mm3
    kept = postprocess(masks, keep(min_volume_ml=0.2), 100.0)
    assert (kept[1] == mask((1, 1), (1, 2), (4, 4), (4, 5), (5, 4))).all()
    assert not postprocess(masks, keep(min_volume_ml=0.4, keep_largest=True), 100.0)[1].any()


def test_a_smallest_volume_without_the_volume_of_a_voxel_is_refused() -> None:
    with pytest.raises(GeometryError):
        postprocess({1: mask((1, 1))}, keep(min_volume_ml=0.2), None)


def test_without_tumor_nothing_is_taken_out() -> None:
    assert postprocess({}, keep(keep_largest=True), None) == {}
    assert not postprocess({1: mask()}, keep(keep_largest=True), None)[1].any()
