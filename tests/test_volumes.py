from typing import Any

import pytest

from segmodel.volumes import volumes


def mask_row(
    index: int, voxels: int = 10, patient: str = "A", series: str = "A", spacing: Any = (5.0, 1.0, 2.0)
) -> dict[str, Any]:
    slice_mm, row_mm, column_mm = spacing
    return {
        "slice_id": f"{patient}_{series}_{index}",
        "patient_id": patient,
        "series_id": series,
        "slice_index": index,
        "height": 8,
        "width": 8,
        "slice_spacing_mm": slice_mm,
        "row_spacing_mm": row_mm,
        "column_spacing_mm": column_mm,
        "tumor_pixels": voxels,
    }


def quarantine_row(index: int, patient: str = "A") -> dict[str, Any]:
    return {"slice_id": "x", "patient_id": patient, "series_id": patient, "slice_index": index, "stage": "read", "reason": "?"}


def only(table: Any) -> dict[str, Any]:
    (row,) = table.to_pylist()
    return row


def test_volume_is_voxels_times_the_volume_of_one() -> None:
    row = only(volumes([mask_row(1), mask_row(2, voxels=0), mask_row(3)], [], set()))
    assert row["tumor_voxels"] == 20
    assert row["slices_with_tumor"] == 2
    assert row["tumor_volume_mm3"] == pytest.approx(200.0)  # 20 voxels of 5 x 1 x 2 mm
    assert row["tumor_volume_ml"] == pytest.approx(0.2)
    assert row["volume_note"] is None


def test_unknown_spacing_gives_no_volume_and_says_which() -> None:
    row = only(volumes([mask_row(1, spacing=(None, 1.0, 1.0))], [], set()))
    assert row["tumor_voxels"] == 10
    assert row["tumor_volume_mm3"] is None
    assert row["tumor_volume_ml"] is None
    assert row["volume_note"] == "unknown slice spacing"


def test_a_missing_slice_is_counted_and_gives_no_volume() -> None:
    row = only(volumes([mask_row(1), mask_row(3)], [], set()))
    assert (row["slices"], row["slices_missing"]) == (2, 1)
    assert row["tumor_volume_mm3"] is None
    assert row["volume_note"] == "1 missing slice"


def test_a_quarantined_slice_counts_as_missing_once_wherever_it_lies() -> None:
    in_the_middle = only(volumes([mask_row(1), mask_row(3)], [quarantine_row(2)], set()))
    at_the_end = only(volumes([mask_row(1), mask_row(2)], [quarantine_row(3)], set()))
    assert in_the_middle["slices_missing"] == at_the_end["slices_missing"] == 1
    assert at_the_end["tumor_volume_mm3"] is None


def test_a_patient_without_any_segmented_slice_is_still_there() -> None:
    row = only(volumes([], [quarantine_row(1), quarantine_row(2)], set()))
    assert (row["patient_id"], row["slices"], row["slices_missing"]) == ("A", 0, 2)
    assert "no slice could be segmented" in row["volume_note"]


def test_a_duplicated_slice_is_counted_and_gives_no_volume() -> None:
    row = only(volumes([mask_row(1), mask_row(1), mask_row(2)], [], set()))
    assert row["slices_duplicated"] == 1
    assert row["tumor_volume_mm3"] is None


def test_two_series_are_not_added_up() -> None:
    row = only(volumes([mask_row(1, series="one"), mask_row(1, series="two")], [], set()))
    assert row["slices_duplicated"] == 0
    assert row["tumor_volume_mm3"] is None
    assert "2 series" in row["volume_note"]


def test_spacing_that_changes_within_a_patient_gives_no_volume() -> None:
    row = only(volumes([mask_row(1), mask_row(2, spacing=(6.0, 1.0, 2.0))], [], set()))
    assert row["tumor_volume_mm3"] is None
    assert "differs" in row["volume_note"]


def test_impossible_spacing_gives_no_volume() -> None:
    row = only(volumes([mask_row(1, spacing=(0.0, 1.0, 2.0))], [], set()))
    assert row["tumor_volume_mm3"] is None
    assert "impossible spacing" in row["volume_note"]


def test_patients_are_sorted_and_those_of_the_training_are_marked() -> None:
    table = volumes([mask_row(1, patient="B"), mask_row(1, patient="A")], [], {"B"})
    assert table["patient_id"].to_pylist() == ["A", "B"]
    assert table["seen_in_training"].to_pylist() == [False, True]
