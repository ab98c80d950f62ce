"""Tumor volume of each patient and of each series, and what to look at first, from the published shards of a run alone."""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from segmodel.analysis import series_counts, series_shapes
from segmodel.analysis.changes import StudyVolume, changes
from segmodel.analysis.review import Finding, estimate_dice, review
from segmodel.analysis.series_shapes import Chunk, Series
from segmodel.analysis.studies import Studies, common_date, date_of
from segmodel.analysis.tumor_shape import Postprocessing
from segmodel.core import schema
from segmodel.core.errors import GeometryError
from segmodel.core.geometry import MM3_PER_ML, Spacing
from segmodel.core.progress import Progress
from segmodel.runs import run_folder
from segmodel.runtime import ray_cluster
from segmodel.storage import csv_files, store

THREADS = 8
RAY_FILES = 256
"""Mask files from which on Ray Data is worth the seconds that it takes to start."""

_SPACINGS = ("slice_spacing_mm", "row_spacing_mm", "column_spacing_mm")
_SUMS = ("slices", "slices_missing", "slices_duplicated", "slices_with_tumor", "tumor_voxels")
_NO_TUMOR = {
    "tumor_voxels": 0,
    "slices_with_tumor": 0,
    "largest_component_voxels": 0,
    "touches_border": False,
    "jumps": [],
}

Row = dict[str, Any]


def summarise(
    output: str,
    seen_in_training: Callable[[str], str | None],
    postprocessing: Postprocessing | None = None,
    studies: Studies | None = None,
) -> pa.Table:
    """Write the tables of changes, of series and of volumes of the run in `output`, volumes.csv last.

    Shapes are measured on Ray where it is connected and the run has `RAY_FILES` mask files, otherwise here.

    Args:
        output: the run folder.
        seen_in_training: of a patient: train, validation, no or, where that is unknown, None.
        postprocessing: taken out of the masks before they are counted; changed series go to postprocessed/.
        studies: of the series, where they are known.

    Returns:
        `schema.VOLUMES`, sorted by patient.
    """
    masks = store.join(output, "masks")
    names = store.list_files(masks, ".parquet")
    quarantined = _read_quarantine(store.join(output, "quarantine"))
    series = series_of(
        series_counts.count_series(series_counts.read_slices(masks, names), quarantined),
        quarantined,
    )
    store.remove(store.join(output, "postprocessed"))  # of an earlier summary
    if postprocessing is not None:
        mark_postprocessed(series, postprocessing)
    chunks = series_shapes.plan(
        Series(
            row["patient_id"],
            row["series_id"],
            [names[n] for n in sorted(row["files"])],
            row["postprocess"],
            row["voxel_mm3"],
        )
        for row in series
        if row["tumor_voxels"] and not row["uneven"]
    )
    add_shapes(
        series,
        _measure(
            chunks, output, postprocessing, on_ray=ray.is_initialized() and len(names) >= RAY_FILES
        ),
    )
    by_series, by_patient = tables(series, seen_in_training, studies)
    changed = changes(study_volumes(series, studies or {}))
    for name, table in (("changes", changed), ("series", by_series), ("volumes", by_patient)):
        store.publish_table(store.join(output, f"{name}.parquet"), table)
        csv_files.publish_csv_table(store.join(output, f"{name}.csv"), table)
    return by_patient


def series_of(counts: pa.Table, quarantined: pa.Table) -> list[Row]:
    """One row a series, sorted by patient and series: its counts, the volume of its voxels, and why it has no volume.

    Slices in quarantine that name no series are a row of their own, and no other series of their patient has a volume: one of
    them may be its. Those that name no patient are missing in the only series of their name, if there is only one.

    Args:
        counts: from `series_counts.count_series`.
        quarantined: as given to it.
    """
    blank = series_counts.blank_indices(quarantined)
    of_nobody = Counter(
        quarantined.filter(pc.is_null(quarantined["patient_id"]))["series_id"].to_pylist()
    )
    rows = counts.to_pylist()
    owners = Counter(row["series_id"] for row in rows)
    homeless = {
        row["patient_id"]: row["with_index"] + row["without_index"]
        for row in rows
        if row["series_id"] is None
    }
    for row in rows:
        patient, name = row["patient_id"], row["series_id"]
        unplaced = of_nobody[name] if owners[name] == 1 else 0
        row["slices_missing"], row["holes"] = (
            (homeless[patient], 0)
            if name is None
            else series_counts.slices_missing(row, blank.get((patient, name), set()), unplaced)
        )
        row["slices_duplicated"] = 0 if name is None else row["with_index"] - row["indices"]
        row["uneven"] = row["heights"] > 1 or row["widths"] > 1
        row["postprocess"] = False
        for count in ("slices_with_tumor", "tumor_voxels"):
            row[count] = row[count] or 0
        # Of the model's own masks, before any postprocessing.
        row["estimated_dice"] = (
            estimate_dice(row["probability_sum"], row["probability_in_mask"], row["tumor_voxels"])
            if row["slices"]
            else None
        )
        row |= _voxel(row)
        row["stray"] = homeless.get(patient, 0) if name is not None else 0
        if row["stray"]:
            text = f"{_slices(row['stray'])} of this patient in quarantine name no series"
            row["volume_note"] = "; ".join(filter(None, [row["volume_note"], text]))
    return sorted(rows, key=lambda row: (row["patient_id"], row["series_id"] or ""))


def mark_postprocessed(series: list[Row], how: Postprocessing) -> None:
    """Mark the series to postprocess; one with tumor that cannot be is left as it is and says so in its note."""
    for row in series:
        whole = not (
            row["slices_missing"] or row["slices_duplicated"] or row["uneven"] or row["stray"]
        )
        row["postprocess"] = whole and (how.min_volume_ml is None or row["voxel_mm3"] is not None)
        if row["tumor_voxels"] and not row["postprocess"]:
            why = [
                row["volume_note"],
                "slices of several sizes" if row["uneven"] else None,
                "therefore not postprocessed",
            ]
            row["left_as_it_is"] = "; ".join(filter(None, why))


def add_shapes(series: list[Row], measured: pa.Table) -> None:
    """Give each series its shape, and the counts of its final masks.

    Args:
        series: from `series_of`.
        measured: `series_shapes.SHAPES`; a series that is not there has no tumor, or slices of several sizes.
    """
    found = {(row["patient_id"], row["series_id"]): row for row in measured.to_pylist()}
    for row in series:
        unknown: Row = {"largest_component_voxels": None, "touches_border": False, "jumps": []}
        shape = found.get(
            (row["patient_id"], row["series_id"]), unknown if row["tumor_voxels"] else _NO_TUMOR
        )
        counted = (
            () if row["postprocess"] else ("tumor_voxels", "slices_with_tumor")
        )  # already, of all slices
        row |= {name: value for name, value in shape.items() if name not in counted}
        volume = None if row["volume_note"] else row["tumor_voxels"] * row["voxel_mm3"]
        row["tumor_volume_mm3"] = volume
        row["tumor_volume_ml"] = None if volume is None else volume / MM3_PER_ML
        row["volume_note"] = row.get("left_as_it_is", row["volume_note"])


def tables(
    series: list[Row],
    seen_in_training: Callable[[str], str | None],
    studies: Studies | None = None,
) -> tuple[pa.Table, pa.Table]:
    """`schema.SERIES` and `schema.VOLUMES`, of series that `add_shapes` has completed."""
    findings = [
        Finding(
            row["patient_id"],
            row["slices"],
            row["slices_missing"],
            row["slices_duplicated"],
            row["tumor_voxels"],
            row["tumor_volume_ml"],
            row["estimated_dice"],
            row["touches_border"],
            row["jumps"],
        )
        for row in series
    ]
    for row, looked_at in zip(series, review(findings), strict=True):
        key = row["patient_id"], row["series_id"]
        row["study_date"] = date_of(studies or {}, key)
        row["seen_in_training"] = seen_in_training(row["patient_id"])
        row["review_score"], row["reasons"] = looked_at.score, looked_at.reasons
        row["review_reasons"] = "; ".join(looked_at.reasons) or None
    patients = [
        _of_patient(list(rows)) for _, rows in groupby(series, key=lambda row: row["patient_id"])
    ]
    return pa.Table.from_pylist(series, schema=schema.SERIES), pa.Table.from_pylist(
        patients, schema=schema.VOLUMES
    )


def study_volumes(series: list[Row], studies: Studies) -> list[StudyVolume]:
    """What changes over time are computed from, of series that `tables` has completed."""
    return [
        StudyVolume(
            patient_id=row["patient_id"],
            series_id=row["series_id"],
            study=studies[row["patient_id"], row["series_id"]],
            volume_ml=row["tumor_volume_ml"],
            volume_note=row["volume_note"],
            spacing=None
            if row["voxel_mm3"] is None
            else Spacing(*(row[name] for name in _SPACINGS)),
            seen_in_training=row["seen_in_training"],
        )
        for row in series
        if (row["patient_id"], row["series_id"]) in studies
    ]


def _of_patient(series: list[Row]) -> Row:
    """The row of a patient: that of the only series, or sums over several and no volume."""
    if len(series) == 1:
        return series[0]
    sums = {name: sum(row[name] for row in series) for name in _SUMS}
    # Slices that name no series may be those that are not there.
    sums["slices_missing"] -= min(
        max(row["stray"] for row in series), sum(row["holes"] for row in series)
    )
    segmented = sum(row["slices"] > 0 for row in series)
    reasons = _reasons(sums["slices"], sums["slices_missing"], sums["slices_duplicated"])
    if segmented > 1:
        reasons.insert(
            0,
            f"{segmented} series: the same tumor would count {segmented} times (series.csv has each alone)",
        )
    largest = [
        row["largest_component_voxels"]
        for row in series
        if row["largest_component_voxels"] is not None
    ]
    review_reasons = [
        f"series {row['series_id'] or 'unknown'}: {reason}"
        for row in series
        for reason in row["reasons"]
    ]
    return {
        **sums,
        "patient_id": series[0]["patient_id"],
        "study_date": common_date(
            row["study_date"] for row in series if row["series_id"] is not None
        ),
        "seen_in_training": series[0]["seen_in_training"],
        "volume_note": "; ".join(reasons),
        "largest_component_voxels": max(largest, default=None),
        "estimated_dice": min(
            (row["estimated_dice"] for row in series if row["estimated_dice"] is not None),
            default=None,
        ),
        "review_score": max(row["review_score"] for row in series),
        "review_reasons": "; ".join(review_reasons) or None,
    }


def _voxel(count: Row) -> Row:
    """Volume of a voxel of one series, None if it is unknown, and why the series has no volume, None if it has."""
    reasons = _reasons(count["slices"], count["slices_missing"], count["slices_duplicated"])
    if not count["slices"]:
        return {"voxel_mm3": None, "volume_note": "; ".join(reasons)}
    voxel_mm3 = None
    if any(
        count[f"{name}_count"] > 1 or 0 < count[f"{name}_known"] < count["slices"]
        for name in _SPACINGS
    ):
        reasons.append("the spacing differs from slice to slice")
    else:
        try:
            voxel_mm3 = Spacing(*(count[name] for name in _SPACINGS)).voxel_mm3()
        except GeometryError as error:
            reasons.append(str(error))
    return {"voxel_mm3": voxel_mm3, "volume_note": "; ".join(reasons) or None}


def _reasons(slices: int, missing: int, duplicated: int) -> list[str]:
    reasons = [] if slices else ["no slice could be segmented"]
    if missing:
        reasons.append(_slices(missing, "missing "))
    if duplicated:
        reasons.append(_slices(duplicated, "duplicated "))
    return reasons


def _slices(number: int, which: str = "") -> str:
    return f"{number} {which}slice{'s' if number > 1 else ''}"


def _measure(
    chunks: list[Chunk], output: str, how: Postprocessing | None, on_ray: bool
) -> pa.Table:
    """`series_shapes.SHAPES` of all chunks."""
    progress = Progress(sum(len(chunk.series) for chunk in chunks), "series measured")
    measured = [series_shapes.SHAPES.empty_table()]
    if on_ray and chunks:
        ray_cluster.configure_ray_data()
        texts = [{"chunk": chunk.to_json()} for chunk in chunks]
        dataset = ray.data.from_items(texts, override_num_blocks=len(texts)).map_batches(
            partial(series_shapes.measure_batch, output=output, how=how),
            batch_size=1,
            batch_format="pyarrow",
        )
        for table in cast(
            Iterable[Any], dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        ):
            measured.append(table.cast(series_shapes.SHAPES))
            progress.advance(table.num_rows)
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(
                0, len(chunks), THREADS
            ):  # no more is read ahead: a chunk may be large
                some = chunks[start : start + THREADS]
                read = pool.map(partial(series_shapes.read_chunk, output=output), some)
                for chunk, rows in zip(
                    some, read, strict=True
                ):  # measured in one thread: several only wait for each other
                    measured.append(series_shapes.measure_chunk(chunk, rows, output, how))
                    progress.advance(len(chunk.series))
    return pa.concat_tables(measured)


def _read_quarantine(folder: str) -> pa.Table:
    def read(name: str) -> pa.Table:
        return run_folder.read_table(store.join(folder, name), series_counts.LOST)

    with ThreadPoolExecutor(THREADS) as pool:
        empty = schema.QUARANTINE.empty_table().select(series_counts.LOST)
        return pa.concat_tables([empty, *pool.map(read, store.list_files(folder, ".parquet"))])
