"""Which slices of a patient are shown, and how they are drawn."""

import numpy as np
import pytest

from segmodel.report import slice_picture
from segmodel.report.patient_slices import choose, sides_of


def test_sides_of_coronal_slices_are_head_and_feet() -> None:
    # x, to the left, grows with the column; y, to the back, with the slice; z, to the head, falls
    # with the row.
    affine = [0, 0, 2, 0, 5, 0, 0, 0, 0, -2, 0, 0, 0, 0, 0, 1]
    assert sides_of([float(value) for value in affine]) == ("S", "L", "I", "R")
    assert sides_of(None) is None


def slice_row(index: int, pixels: int, probability_sum: float) -> dict:
    return {
        "series_id": "s",
        "slice_index": index,
        "tumor_pixels": pixels,
        "mean_probability": 1.0,
        "probability_sum": probability_sum,
    }


def test_slices_beside_a_chosen_one_are_passed_over() -> None:
    counts = [(1, 0, 30), (2, 0, 0.5), (3, 10, 60), (4, 90, 95), (5, 80, 99), (9, 0, 20)]
    # Most tumor in 4. The doubt, Σp - Σm here: 30, 0.5, 50, 5, 19, 20; 3 and 5 are beside 4.
    chosen = choose([slice_row(*one) for one in counts])
    assert [(row["slice_index"], why) for row, why in chosen] == [
        (4, "most tumor"),
        (1, "model least sure"),
        (9, "model least sure"),
    ]


def test_of_many_slices_the_shown_ones_are_further_apart() -> None:
    rows = [slice_row(index, index, 2 * index) for index in range(1, 161)]  # the doubt is the index
    assert [row["slice_index"] for row, _ in choose(rows)] == [160, 150, 140]


def test_an_outline_runs_along_the_edges_of_pixels() -> None:
    mask = np.zeros((3, 4), dtype=bool)
    mask[1, 1:3] = mask[2, 1] = True
    assert slice_picture.outline(mask) == "M1 1h2M2 2h1M1 3h1M1 1v2M2 2v1M3 1v1"
    assert slice_picture.outline(np.zeros((3, 4), dtype=bool)) == ""


@pytest.mark.parametrize(
    ("columns", "mm", "expected"),
    [
        (256, 0.9, (50 / 0.9, "50 mm")),
        (256, None, None),
        (60, 1.0, (20.0, "20 mm")),
        (2, 1.0, None),
    ],
)
def test_a_scale_bar_is_a_round_length(columns: int, mm: float | None, expected: object) -> None:
    assert slice_picture.scale_bar(columns, mm) == expected


def test_thick_rows_are_drawn_in_proportion() -> None:
    assert slice_picture._size(20, 100, 5.0, 1.0) == (100, 100)
    assert slice_picture._size(768, 384, 1.0, 1.0) == (256, 512)
    assert slice_picture._size(20, 100, None, None) == (100, 20)
