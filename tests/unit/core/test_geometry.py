import pytest

from segmodel.core.errors import GeometryError
from segmodel.core.geometry import Spacing


def test_the_volume_of_a_voxel_is_the_product_of_its_spacings() -> None:
    assert Spacing(5.0, 0.5, 2.0).voxel_mm3() == pytest.approx(5.0)


def test_unknown_spacing_is_an_error_that_names_the_axes() -> None:
    with pytest.raises(GeometryError, match="unknown slice, column spacing"):
        Spacing(slice_mm=None, row_mm=1.0, column_mm=None).voxel_mm3()


@pytest.mark.parametrize("length", [0.0, -1.0, float("nan"), float("inf")])
def test_spacing_that_is_no_length_is_an_error_that_names_the_axis(length: float) -> None:
    with pytest.raises(GeometryError, match=f"impossible spacing: row {length} mm"):
        Spacing(slice_mm=1.0, row_mm=length, column_mm=1.0).voxel_mm3()


def test_a_spacing_reads_as_its_three_lengths() -> None:
    assert str(Spacing(slice_mm=5.5, row_mm=0.937512, column_mm=None)) == "5.5 x 0.9375 x ? mm"


def test_a_spacing_is_read_from_the_columns_of_a_row() -> None:
    row = {"row_spacing_mm": 0.5, "slice_spacing_mm": 5.0, "column_spacing_mm": None, "mask": b""}
    assert Spacing.from_row(row) == Spacing(slice_mm=5.0, row_mm=0.5, column_mm=None)
