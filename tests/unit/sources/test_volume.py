from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from segmodel.core import schema
from segmodel.core.grid import RAS_TO_LPS, Grid
from segmodel.sources.volume import (
    Channel,
    Series,
    intensity_window,
    resample,
    scale_into,
    thick_plane,
    to_tables,
)


def grid(shape: tuple[int, int, int], *spacing_mm: float, ras: tuple[int, int, int]) -> Grid:
    """Axes along the patient's; `ras` gives the sign of each in RAS."""
    affine = np.diag([*(sign * mm for sign, mm in zip(ras, spacing_mm, strict=True)), 1.0])
    return Grid(shape, RAS_TO_LPS @ affine)


def to_uint8(voxels: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    out = np.empty(voxels.shape, np.uint8)
    scale_into(out, voxels, window)
    return out


def test_one_bright_voxel_does_not_make_the_brain_black() -> None:
    voxels = np.zeros((10, 10, 10), np.float32)
    voxels[2:8] = np.linspace(100, 200, 600).reshape(6, 10, 10)
    voxels[5, 5, 5] = 16_000
    window = intensity_window(voxels, (0.5, 99.5))
    assert window == pytest.approx((100.5, 199.5), abs=0.2)
    scaled = to_uint8(voxels, window)
    assert scaled[5, 5, 5] == 255
    assert scaled[2:8].mean() == pytest.approx(127.5, abs=1)
    assert scaled[0, 0, 0] == 0


def test_the_window_s_ends_become_0_and_255_and_its_middle_is_rounded() -> None:
    values = np.array([[-5, 10, 15, 20, 99]], np.float32)
    assert to_uint8(values, (10, 20)).tolist() == [[0, 0, 128, 255, 255]]  # 127.5 to the even 128


@pytest.mark.parametrize("kind", [np.int16, np.uint16])
def test_whole_numbers_have_the_percentiles_of_the_same_numbers_as_floats(kind: type) -> None:
    values = np.random.default_rng(0).integers(-900 if kind == np.int16 else 0, 900, (7, 11, 13))
    percentiles = (0.5, 99.5)
    window = intensity_window(values.astype(kind), percentiles)
    assert window == intensity_window(values.astype(np.float32), percentiles)
    assert window == pytest.approx(np.percentile(values[values != 0], percentiles), rel=1e-6)


def test_an_image_of_one_intensity_is_black_and_no_division_by_zero() -> None:
    voxels = np.full((2, 2, 2), 7, np.float32)
    assert not to_uint8(voxels, intensity_window(voxels, (0.5, 99.5))).any()
    assert intensity_window(np.zeros(3, np.float32), (0.5, 99.5)) == (0, 0)


def test_resampling_to_half_the_spacing_interpolates_between_neighbours() -> None:
    coarse = grid((1, 1, 3), 1, 1, 2, ras=(1, 1, 1))
    fine = grid((1, 1, 5), 1, 1, 1, ras=(1, 1, 1))
    values, covered = resample(np.array([[[0, 10, 30]]], np.float32), coarse, fine)
    assert values.ravel().tolist() == [0, 5, 10, 20, 30]
    assert covered == 1


def test_resampling_says_how_much_of_the_target_the_image_covers() -> None:
    image = grid((4, 4, 4), 1, 1, 1, ras=(1, 1, 1))
    higher = image.affine.copy()
    higher[2, 3] = 2  # two of four slices lie above the image's uppermost
    values, covered = resample(np.ones((4, 4, 4), np.float32), image, Grid((4, 4, 4), higher))
    assert covered == 0.5
    assert values[0, 0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [((1, 1, 5), None), ((1, 5, 1), "coronal"), ((5, 1, 1), "sagittal"), ((1.2, 1, 1), None)],
)
def test_thick_slices_that_are_not_axial_are_told(spacing: tuple, plane: str | None) -> None:
    source = grid((4, 4, 4), *spacing, ras=(1, 1, 1))
    assert thick_plane(source, source.reorientation_to_archive()) == plane


def series() -> Series:
    source = grid((4, 3, 2), 0.5, 0.7, 6, ras=(-1, 1, 1))
    reorientation = source.reorientation_to_archive()
    flair = reorientation.apply(np.arange(24, dtype=np.float32).reshape(4, 3, 2))
    mask = np.zeros((2, 3, 4), bool)
    mask[1, 0, 3] = True
    return Series(
        patient_id="P1",
        series_id="S1",
        study_date=date(2020, 2, 29),
        grid=source.reoriented(reorientation),
        channels=(Channel("FLAIR", flair, "scans/flair.nii.gz", "named so"),),
        mask=mask,
        slice_index=[1, 3],
        slice_uris=["scans/flair.nii.gz"] * 2,
        source_format="nifti",
        source_grid=source,
        reorientation=reorientation,
        label_voxels={1: 20, 4: 3},
    )


def test_a_series_becomes_a_row_a_slice_with_spacings_in_mm() -> None:
    slices, _ = to_tables(series(), (0, 100))
    first, second = slices.to_pylist()
    assert slices.schema == schema.ARCHIVE
    assert [first["slice_id"], second["slice_id"]] == ["P1/S1/1", "P1/S1/3"]
    assert (first["height"], first["width"]) == (3, 4)
    spacing = (first["row_spacing_mm"], first["column_spacing_mm"])
    assert spacing == pytest.approx((0.7, 0.5))
    assert first["slice_spacing_mm"] == 6
    assert np.frombuffer(second["mask"], np.uint8).reshape(3, 4)[0, 3] == 1
    assert not any(first["mask"])


def test_the_table_of_series_holds_what_an_export_needs() -> None:
    _, table = to_tables(series(), (0, 100))
    assert table.schema == schema.ARCHIVE_SERIES
    (row,) = table.to_pylist()
    affine = np.array(row["affine"]).reshape(4, 4)
    # Row 0 is the most anterior, j = 2: y = 2 * 0.7 to the front, so -1.4 in LPS.
    assert affine @ [1, 0, 3, 1] == pytest.approx([1.5, -1.4, 6, 1])
    assert (row["turn_axes"], row["turn_mirrored"]) == ([2, 1, 0], [False, True, False])
    assert (row["source_shape"], row["source_axes"]) == ([4, 3, 2], "LAS")
    assert row["study_date"] == date(2020, 2, 29)
    assert row["label_voxels"] == [(1, 20), (4, 3)]
    channel = row["channels"][0]
    assert (channel["window_low"], channel["window_high"]) == (1, 23)  # 0 is left out


def test_without_one_distance_between_slices_their_spacing_is_null() -> None:
    slices, _ = to_tables(replace(series(), no_volume_reason="uneven steps"), (0, 100))
    assert slices["slice_spacing_mm"].null_count == 2
    assert slices["row_spacing_mm"].null_count == 0
