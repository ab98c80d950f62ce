"""Rows of a run's mask and quarantine files, as a test wants them."""

from typing import Any


def mask_row(
    index: int,
    voxels: int = 10,
    patient: str = "A",
    series: str = "A",
    spacing: Any = (5.0, 1.0, 2.0),
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
        "probability_sum": float(voxels),
        "probability_in_mask": float(voxels),
        "file": 0,
        "tumor": int(voxels > 0),
        "any_index": index,
        "tissue_index": index,
    }


def quarantine_row(
    index: int | None, patient: str | None = "A", series: str | None = "A", stage: str = "read"
) -> dict[str, Any]:
    return {
        "slice_id": "x",
        "patient_id": patient,
        "series_id": series,
        "slice_index": index,
        "stage": stage,
        "reason": "?",
    }


def only(table: Any) -> dict[str, Any]:
    (row,) = table.to_pylist()
    return row
