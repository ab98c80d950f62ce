"""The tables of volumes: a row a series, and a row a patient."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Any

import pyarrow as pa

from segmodel.analysis.changes import StudyVolume, changes
from segmodel.analysis.review import Finding, Review, review
from segmodel.analysis.series_volume import CountedSeries, MeasuredSeries, problems
from segmodel.analysis.studies import Studies, Study, common_date
from segmodel.core import schema


@dataclass(frozen=True)
class Tables:
    """The tables of volumes that a run publishes."""

    series: pa.Table
    """`schema.SERIES`, sorted by patient and series."""
    volumes: pa.Table
    """`schema.VOLUMES`, sorted by patient."""
    changes: pa.Table
    """`schema.CHANGES`."""


@dataclass(frozen=True)
class ReviewedSeries:
    """A series with all that its row says."""

    measured: MeasuredSeries
    review: Review
    seen_in_training: str | None
    study: Study | None

    def row(self) -> dict[str, Any]:
        """Of `schema.SERIES`."""
        measured, counted = self.measured, self.measured.counted
        patient_id, series_id = counted.key
        return {
            "patient_id": patient_id,
            "series_id": series_id,
            "study_date": None if self.study is None else self.study.date,
            "slices": counted.counts.slices,
            "slices_missing": counted.missing,
            "slices_duplicated": counted.duplicated,
            "slices_with_tumor": measured.slices_with_tumor,
            "tumor_voxels": measured.tumor_voxels,
            "tumor_volume_mm3": measured.volume_mm3,
            "tumor_volume_ml": measured.volume_ml,
            "volume_note": measured.volume_note,
            "largest_component_voxels": measured.shape and measured.shape.largest_component_voxels,
            "seen_in_training": self.seen_in_training,
            "estimated_dice": counted.estimated_dice,
            "review_score": self.review.score,
            "review_reasons": "; ".join(self.review.reasons) or None,
        }

    def study_volume(self) -> StudyVolume | None:
        """For changes over time; None where its study is not known."""
        if self.study is None:
            return None
        counted = self.measured.counted
        return StudyVolume(
            patient_id=counted.key[0],
            series_id=counted.key[1],
            study=self.study,
            volume_ml=self.measured.volume_ml,
            volume_note=self.measured.volume_note,
            spacing=None if counted.voxel_mm3 is None else counted.counts.spacing,
            seen_in_training=self.seen_in_training,
        )


def tables(
    series: Sequence[MeasuredSeries],
    seen_in_training: Callable[[str], str | None],
    studies: Studies | None = None,
) -> Tables:
    """The tables of series that were measured.

    Args:
        series: sorted by patient and series.
        seen_in_training: of a patient.
        studies: of the series, where they are known.
    """
    known: Mapping[Any, Study] = studies or {}
    reviewed = [
        ReviewedSeries(one, found, seen_in_training(one.counted.key[0]), known.get(one.counted.key))
        for one, found in zip(series, review([_finding(one) for one in series]), strict=True)
    ]
    patients = [
        _patient_row(list(of_patient))
        for _, of_patient in groupby(reviewed, key=lambda one: one.measured.counted.key[0])
    ]
    dated = [volume for one in reviewed if (volume := one.study_volume()) is not None]
    return Tables(
        pa.Table.from_pylist([one.row() for one in reviewed], schema=schema.SERIES),
        pa.Table.from_pylist(patients, schema=schema.VOLUMES),
        changes(dated),
    )


def _finding(series: MeasuredSeries) -> Finding:
    counted, shape = series.counted, series.shape
    return Finding(
        counted.key[0],
        counted.counts.slices,
        counted.missing,
        counted.duplicated,
        series.tumor_voxels,
        series.volume_ml,
        None if shape is None else shape.largest_component_voxels,
        counted.estimated_dice,
        touches_border=shape is not None and shape.touches_border,
        jumps=() if shape is None else shape.jumps,
    )


def _patient_row(series: Sequence[ReviewedSeries]) -> dict[str, Any]:
    """A patient's row: that of the only series, or sums over several series without a volume."""
    rows = [one.row() for one in series]
    if len(series) == 1:
        return rows[0]
    counted = [one.measured.counted for one in series]
    slices = sum(one.counts.slices for one in counted)
    duplicated = sum(one.duplicated for one in counted)
    # Slices that name no series may be those that are not there.
    stray, holes = max(one.stray for one in counted), sum(one.holes for one in counted)
    missing = sum(one.missing for one in counted) - min(stray, holes)
    dates = [row["study_date"] for row in rows if row["series_id"] is not None]
    review_reasons = [
        f"series {row['series_id'] or 'unknown'}: {reason}"
        for one, row in zip(series, rows, strict=True)
        for reason in one.review.reasons
    ]
    return {
        "patient_id": rows[0]["patient_id"],
        "study_date": common_date(dates),
        "slices": slices,
        "slices_missing": missing,
        "slices_duplicated": duplicated,
        "slices_with_tumor": sum(row["slices_with_tumor"] for row in rows),
        "tumor_voxels": sum(row["tumor_voxels"] for row in rows),
        "volume_note": "; ".join(
            [*_several(counted, dates), *problems(slices, missing, duplicated)]
        ),
        "largest_component_voxels": max(_known(rows, "largest_component_voxels"), default=None),
        "seen_in_training": rows[0]["seen_in_training"],
        "estimated_dice": min(_known(rows, "estimated_dice"), default=None),
        "review_score": max(row["review_score"] for row in rows),
        "review_reasons": "; ".join(review_reasons) or None,
    }


def _several(counted: Sequence[CountedSeries], dates: Sequence[date | None]) -> list[str]:
    """Why series of one patient are not added up, and which tables have the volume of each."""
    number = sum(one.counts.slices > 0 for one in counted)
    if number < 2:
        return []
    where = "series.csv has each alone"
    if len(set(dates) - {None}) > 1:
        where += ", changes.csv the change from study to study"
    return [f"{number} series: the same tumor would count {number} times ({where})"]


def _known(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows if row[name] is not None]
