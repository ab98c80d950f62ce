import numpy as np
import pytest

from segmodel.errors import GeometryError
from segmodel.geometry import SliceGaps, Spacing, slice_gaps, tumor_volume_mm3


def test_volume_doubles_when_slice_spacing_doubles() -> None:
    mask_dhw = np.ones((4, 8, 8), dtype=bool)  # 256 voxels
    assert tumor_volume_mm3(mask_dhw, Spacing(1.0, 0.5, 0.5)) == pytest.approx(64.0)
    assert tumor_volume_mm3(mask_dhw, Spacing(2.0, 0.5, 0.5)) == pytest.approx(128.0)


def test_volume_counts_tumor_voxels_only() -> None:
    mask_dhw = np.zeros((2, 3, 4), dtype=bool)
    mask_dhw[0, 1, 2] = mask_dhw[1, 1, 2] = mask_dhw[1, 2, 3] = True
    assert tumor_volume_mm3(mask_dhw, Spacing(5.0, 0.5, 2.0)) == pytest.approx(15.0)  # 3 voxels of 5 mm3


def test_volume_of_an_empty_mask_is_zero() -> None:
    assert tumor_volume_mm3(np.zeros((2, 3, 4), dtype=bool), Spacing(1.0, 1.0, 1.0)) == 0.0


def test_volume_of_many_voxels_does_not_overflow() -> None:
    mask_dhw = np.broadcast_to(np.True_, (300, 1, 1))  # more than a byte can count
    assert tumor_volume_mm3(mask_dhw, Spacing(1.0, 1.0, 1.0)) == 300.0


def test_unknown_spacing_is_an_error_that_names_the_axes() -> None:
    with pytest.raises(GeometryError, match="unknown slice, column spacing"):
        Spacing(slice_mm=None, row_mm=1.0, column_mm=None).voxel_mm3()


@pytest.mark.parametrize("length", [0.0, -1.0, float("nan"), float("inf")])
def test_spacing_that_is_no_length_is_an_error_that_names_the_axis(length: float) -> None:
    with pytest.raises(GeometryError, match=f"impossible spacing: row {length} mm"):
        Spacing(slice_mm=1.0, row_mm=length, column_mm=1.0).voxel_mm3()


@pytest.mark.parametrize(
    ("indices", "missing", "duplicated"),
    [
        ([], 0, 0),
        ([7], 0, 0),
        ([1, 2, 3], 0, 0),
        ([3, 1, 2], 0, 0),
        ([5, 6, 7], 0, 0),  # a series need not start at 1
        ([1, 2, 5], 2, 0),
        ([1, 1, 2], 0, 1),
        ([4, 1, 1, 1], 2, 2),
    ],
)
def test_slice_gaps_counts_holes_and_repetitions(indices: list[int], missing: int, duplicated: int) -> None:
    assert slice_gaps(indices) == SliceGaps(missing=missing, duplicated=duplicated)
