import numpy as np
import pytest

from segmodel.core.grid import Grid, Reorientation


def lps(*columns: tuple[float, float, float], origin: tuple[float, float, float] = (0, 0, 0)):
    affine = np.eye(4)
    affine[:3, :3] = np.array(columns).T
    affine[:3, 3] = origin
    return affine


# Axes i to left (2 mm), j to posterior (3 mm), k to superior (5 mm): DICOM's own order of axes.
LPS = Grid((4, 3, 2), lps((2, 0, 0), (0, 3, 0), (0, 0, 5)))
# Axes i to right, j to anterior, k to superior: what nibabel calls RAS.
RAS = Grid((4, 3, 2), lps((-2, 0, 0), (0, -3, 0), (0, 0, 5), origin=(6, 6, 0)))


def test_axes_exchange_and_none_is_mirrored_from_lps() -> None:
    assert LPS.axis_codes == "LPS"
    assert LPS.reorientation_to_archive() == Reorientation((2, 1, 0), (False, False, False))


def test_right_and_anterior_axes_are_mirrored() -> None:
    assert RAS.axis_codes == "RAS"
    assert RAS.reorientation_to_archive() == Reorientation((2, 1, 0), (True, True, False))


def test_the_most_anterior_row_is_the_first_and_the_right_side_is_on_the_left() -> None:
    voxels = np.zeros((4, 3, 2))
    voxels[3, 2, 1] = 1  # RAS: the farthest to the right, to the front and to the top
    reoriented = RAS.reorientation_to_archive().apply(voxels)
    assert reoriented.shape == (2, 3, 4)
    assert reoriented[1, 0, 0] == 1


@pytest.mark.parametrize("grid", [LPS, RAS], ids=["LPS", "RAS"])
def test_a_turned_voxel_stays_where_it_is_in_the_patient(grid: Grid) -> None:
    reorientation = grid.reorientation_to_archive()
    marked = np.zeros(grid.shape)
    marked[1, 2, 0] = 1
    (found,) = np.argwhere(reorientation.apply(marked))
    before = grid.affine @ [1, 2, 0, 1]
    after = grid.reoriented(reorientation).affine @ [*found, 1]
    assert after == pytest.approx(before)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_undo_gives_the_source_s_voxels_back(axes: tuple[int, int, int]) -> None:
    voxels = np.arange(24).reshape(4, 3, 2)
    reorientation = Reorientation(axes, (True, False, True))
    assert np.array_equal(reorientation.undo(reorientation.apply(voxels)), voxels)


def test_spacing_and_voxel_volume_are_read_off_the_affine() -> None:
    reoriented = LPS.reoriented(LPS.reorientation_to_archive())
    assert reoriented.spacing_mm == pytest.approx((5, 3, 2))
    assert reoriented.voxel_mm3 == pytest.approx(30)
    assert reoriented.axis_codes == "SPL"


def test_an_oblique_grid_takes_the_nearest_axes_and_is_not_sheared() -> None:
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    tilted = Grid((8, 8, 8), lps((1, 0, 0), (0, c, s), (0, -s, c)))
    reoriented = tilted.reoriented(tilted.reorientation_to_archive())
    assert reoriented.axis_codes == "SPL"
    assert reoriented.shear_degrees == pytest.approx(0, abs=1e-5)


def test_a_gantry_tilt_is_a_shear() -> None:
    c, s = np.cos(np.radians(10)), np.sin(np.radians(10))
    sheared = Grid((8, 8, 8), lps((1, 0, 0), (0, 1, 0), (0, 3 * s, 3 * c)))
    assert sheared.shear_degrees == pytest.approx(10)
    assert sheared.voxel_mm3 == pytest.approx(3 * c)


def test_planes_are_named_by_the_axis_that_slices_are_stacked_along() -> None:
    assert [LPS.plane(axis) for axis in range(3)] == ["sagittal", "coronal", "axial"]


def test_grids_agree_to_a_hundredth_of_a_millimetre() -> None:
    moved = LPS.affine.copy()
    moved[0, 3] += 0.009
    assert LPS.agrees_with(Grid(LPS.shape, moved))
    moved[0, 3] += 0.01
    assert not LPS.agrees_with(Grid(LPS.shape, moved))
    assert not LPS.agrees_with(Grid((4, 3, 1), LPS.affine))


def test_a_turned_grid_turns_back_to_its_source_exactly() -> None:
    affine = np.array([[0, 0, -1.25, 60], [-0.75, 0.1, 0, 95], [0, -1.5, 0, 140], [0, 0, 0, 1]])
    source = Grid((4, 6, 5), affine)
    reorientation = source.reorientation_to_archive()
    back = source.reoriented(reorientation).undo_reorientation(reorientation)
    assert back.shape == source.shape
    assert np.allclose(back.affine, affine, rtol=0, atol=1e-12)
