"""Tumor volume of each patient, from the published shards of a run alone."""

import io
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.csv

from segmodel import schema, storage
from segmodel.errors import GeometryError
from segmodel.geometry import MM3_PER_ML, Spacing, slice_gaps

READ_THREADS = 8
_LIGHT = [name for name in schema.MASKS.names if name not in ("mask", "mean_probability", "uncertainty")]
_SPACING = ("slice_spacing_mm", "row_spacing_mm", "column_spacing_mm")

Rows = list[dict[str, Any]]


def summarise(output: str, training_patients: Iterable[str]) -> pa.Table:
    """Write volumes.parquet and volumes.csv of the run in `output`.

    Args:
        output: the run folder.
        training_patients: patients whose masks the model learned from.

    Returns:
        `schema.VOLUMES`, sorted by patient.
    """
    segmented = _read(storage.join(output, "masks"), _LIGHT)
    quarantined = _read(storage.join(output, "quarantine"), schema.QUARANTINE.names)
    table = volumes(segmented, quarantined, set(training_patients))
    storage.publish_table(storage.join(output, "volumes.parquet"), table)
    text = io.BytesIO()
    pyarrow.csv.write_csv(table, text, pyarrow.csv.WriteOptions(quoting_style="needed"))
    storage.publish(storage.join(output, "volumes.csv"), text.getvalue())
    return table


def volumes(segmented: Rows, quarantined: Rows, training_patients: set[str]) -> pa.Table:
    """One row a patient.

    Args:
        segmented: rows with the light columns of `schema.MASKS`.
        quarantined: rows of `schema.QUARANTINE`; each is a missing slice of its patient.
        training_patients: to be marked.
    """
    by_patient: dict[str, tuple[Rows, Rows]] = defaultdict(lambda: ([], []))
    for row in segmented:
        by_patient[row["patient_id"]][0].append(row)
    for row in quarantined:
        if row["patient_id"] is not None:
            by_patient[row["patient_id"]][1].append(row)
    rows = [
        {"patient_id": patient, "seen_in_training": patient in training_patients, **_of_patient(*by_patient[patient])}
        for patient in sorted(by_patient)
    ]
    return pa.Table.from_pylist(rows, schema=schema.VOLUMES)


def _of_patient(rows: Rows, quarantined: Rows) -> dict[str, Any]:
    series: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        series[row["series_id"]].append(row["slice_index"])
    gaps = [slice_gaps(indices) for indices in series.values()]
    missing = sum(gap.missing for gap in gaps)
    # A quarantined slice in the middle is such a gap already; one at either end is missing on top.
    missing += sum(not _inside(row, series) for row in quarantined)
    duplicated = sum(gap.duplicated for gap in gaps)
    voxels = sum(row["tumor_pixels"] for row in rows)
    volume, note = _volume_mm3(rows, voxels, len(series), missing, duplicated)
    return {
        "slices": len(rows),
        "slices_missing": missing,
        "slices_duplicated": duplicated,
        "slices_with_tumor": sum(row["tumor_pixels"] > 0 for row in rows),
        "tumor_voxels": voxels,
        "tumor_volume_mm3": volume,
        "tumor_volume_ml": None if volume is None else volume / MM3_PER_ML,
        "volume_note": note,
    }


def _inside(row: dict[str, Any], series: dict[str, list[int]]) -> bool:
    indices = series.get(row["series_id"])
    return indices is not None and row["slice_index"] is not None and min(indices) <= row["slice_index"] <= max(indices)


def _volume_mm3(rows: Rows, voxels: int, series: int, missing: int, duplicated: int) -> tuple[float | None, str | None]:
    """The volume, or None and why."""
    spacings = {tuple(row[name] for name in _SPACING) for row in rows}
    reasons = []
    if not rows:
        reasons.append("no slice could be segmented")
    if series > 1:
        reasons.append(f"{series} series: the same tumor would count {series} times")
    if missing:
        reasons.append(f"{missing} missing slice{'s' if missing > 1 else ''}")
    if duplicated:
        reasons.append(f"{duplicated} duplicated slice{'s' if duplicated > 1 else ''}")
    if len(spacings) > 1:
        reasons.append("the spacing differs from slice to slice")
    volume = None
    if len(spacings) == 1:
        try:
            volume = voxels * Spacing(*spacings.pop()).voxel_mm3()
        except GeometryError as error:
            reasons.append(str(error))
    return (None, "; ".join(reasons)) if reasons else (volume, None)


def _read(folder: str, columns: list[str]) -> Rows:
    def read(name: str) -> Rows:
        with storage.open_parquet(storage.join(folder, name)) as file:
            rows: Rows = file.read(columns=columns).to_pylist()
        return rows

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return [row for rows in pool.map(read, storage.list_files(folder, ".parquet")) for row in rows]
