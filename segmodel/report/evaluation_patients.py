"""The best, median and worst patients of an evaluation, with their most informative slices."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from segmodel.archive.reader import Archive
from segmodel.core.errors import SegmodelError
from segmodel.core.rounding import ml_text
from segmodel.report import ranking, slice_picture
from segmodel.report.evaluation_data import EvaluationData, Row, unit_text
from segmodel.report.evaluation_slices import ComparedSlices
from segmodel.report.page import number
from segmodel.report.patient_slices import ShownSlice
from segmodel.report.slice_picture import SlicePicture

PICTURES = 3
"""Of a patient, where one segmentation is judged."""


@dataclass(frozen=True)
class ShownPatient:
    """A patient with pictures."""

    anchor: str
    patient_id: str
    place: str
    """Such as `best`."""
    facts: list[tuple[str, str]]
    """(segmentation, its metrics)."""
    pictures: list[SlicePicture]
    problem: str
    """Why there are no pictures; empty if there are."""


def open_slices(data: EvaluationData) -> tuple[ComparedSlices | None, str]:
    """A reader of slices; without the archive None, and why."""
    try:
        return ComparedSlices(Archive(data.archive, skip_damaged=True), data.segmentations), ""
    except (SegmodelError, OSError) as error:
        return None, f"No pictures, because the archive cannot be read. {error}"


def ranked_by(data: EvaluationData) -> str:
    """The first segmentation that has patients of the first group."""
    name = data.group_names[0]
    return next(one for one in data.segmentations if data.group(one, name) is not None)


def choose_patients(data: EvaluationData, slices: ComparedSlices | None) -> list[ShownPatient]:
    """Best, median and worst patients with tumor of the first group, by `ranked_by`."""
    name = data.group_names[0]
    rows = [row for row in data.of_group(ranked_by(data), name) if row["true_voxels"]]
    rows.sort(key=lambda row: (-row["dice"], row["patient_id"]))
    return [
        _patient(data, rows[index], place, number, slices)
        for number, (index, place) in enumerate(ranking.places(len(rows)).items(), 1)
    ]


def _patient(
    data: EvaluationData, row: Row, place: str, number: int, slices: ComparedSlices | None
) -> ShownPatient:
    same = [
        one
        for one in data.rows
        if (one["patient_id"], one["series_id"]) == (row["patient_id"], row["series_id"])
    ]
    pictures, problem = [], ""
    if slices is not None:
        try:
            pictures = _pictures(slices, row, len(data.segmentations))
        except (SegmodelError, pa.ArrowException, OSError, ValueError) as error:
            # The numbers are there. One damaged slice must not cost the page.
            problem = f"No pictures: {error}"
    return ShownPatient(
        anchor=f"patient-{number}",
        patient_id=row["patient_id"],
        place=place,
        facts=[(one["segmentation"], _metrics_text(one)) for one in same],
        pictures=pictures,
        problem=problem,
    )


def _pictures(slices: ComparedSlices, row: Row, segmentations: int) -> list[SlicePicture]:
    limit = PICTURES if segmentations == 1 else max(1, 4 // segmentations)
    found = slices.of(row["patient_id"], row["series_id"], limit)
    # A few pixels of skull or vessel must not make the brain dark.
    brightest = max(
        float(np.percentile(one.image_hw, 99.5)) for each in found for one in each.values()
    )
    return [
        slice_picture.draw(_named(one, name if segmentations > 1 else ""), brightest, None)
        for each in found
        for name, one in each.items()
    ]


def _named(shown: ShownSlice, segmentation: str) -> ShownSlice:
    """The slice, with the segmentation in its caption if there are several."""
    return replace(shown, why=f"{segmentation}: {shown.why}") if segmentation else shown


def _metrics_text(row: Row) -> str:
    parts = [f"Dice {row['dice']:.3f}"]
    if row["hd95"] is not None:
        parts.append(f"HD95 {row['hd95']:.1f} {unit_text(row['unit'])}")
    if row["nsd"] is not None:
        parts.append(f"NSD {row['nsd']:.2f}")
    if row["true_ml"] is not None:
        parts.append(f"{ml_text(row['true_ml'])}, predicted {ml_text(row['predicted_ml'])}")
    else:
        parts.append(
            f"{number(row['true_voxels'])} voxels, predicted {number(row['predicted_voxels'])}"
        )
    return " · ".join(parts)
