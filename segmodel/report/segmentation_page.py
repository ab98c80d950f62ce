"""The page of a segmentation: review queue, all patients, volumes, quarantine, speed, settings."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa

from segmodel.archive.reader import Archive
from segmodel.core.errors import FingerprintError, SegmodelError
from segmodel.core.rounding import ml_text
from segmodel.report import change_charts, page, quarantine, run_facts, run_figures, slice_picture
from segmodel.report.page import REPORT, number
from segmodel.report.patient_slices import THREADS, RunSlices
from segmodel.report.slice_picture import SlicePicture
from segmodel.runs import run_file, run_folder
from segmodel.runs.run_file import UNFINISHED, Run
from segmodel.runs.run_folder import THROUGHPUT
from segmodel.storage import csv_files, store

PICTURED = 24
"""Patients with pictures: a page must stay small enough for mail."""
TABLE_ROWS = 10_000
"""Patients in the page's table; all are in volumes.csv."""

_SLICES = ["patient_id", "slices", "slices_missing", "slices_with_tumor"]
_TUMOR = ["tumor_voxels", "tumor_volume_ml", "volume_note"]
_REVIEW = ["estimated_dice", "seen_in_training", "review_score", "review_reasons"]
_READ = [*_SLICES, *_TUMOR, *_REVIEW]

Row = dict[str, Any]


@dataclass(frozen=True)
class QueuedPatient:
    """A patient to look at, and the pictures."""

    anchor: str
    row: Row
    """Of `schema.VOLUMES`."""
    volume: str
    reasons: list[str]
    pictures: list[SlicePicture]
    problem: str
    """Why there are no pictures; empty if there are."""


def write(output: str, pictures: bool = True) -> None:
    """Publish the page in the run folder of a finished segmentation.

    Without the archive that was segmented, the page has no pictures and says so.

    Args:
        output: the run folder.
        pictures: whether the page shows slices of patients.

    Raises:
        FingerprintError: it is no run folder, or not finished.
        SegmentationError: one of its tables cannot be read.
    """
    run = run_file.read(output)
    if run.finished is None:
        raise FingerprintError(
            f"{output} is not finished; give its jobs.segment command again first"
        )
    store.publish(store.join(output, REPORT), build(output, run, pictures).encode())


def build(output: str, run: Run, pictures: bool) -> str:
    """The page of a finished run, as HTML."""
    table = run_folder.read_summary(output, "volumes.parquet", _READ)
    rows = table.sort_by([("review_score", "descending"), ("patient_id", "ascending")]).to_pylist()
    slices, missing = _open_slices(output, run) if pictures else (None, "")
    queue = _queue(rows[:PICTURED], slices)
    changes = change_charts.read_changes(output)
    return page.render(
        "segmentation.html",
        title=output.rstrip("/").rsplit("/", 1)[-1],
        kind="Segmentation",
        output=output,
        tiles=_tiles(run, rows),
        notes=_notes(run, rows, missing, pictures),
        queue=queue,
        patients=len(rows),
        table_rows=TABLE_ROWS,
        columns=_COLUMNS,
        rows=[_cells(row) for row in rows[:TABLE_ROWS]],
        links={patient.row["patient_id"]: f"#{patient.anchor}" for patient in queue},
        figures=_figures(rows),
        changes=[change_charts.cells(row) for row in changes[:TABLE_ROWS]],
        change_columns=change_charts.COLUMNS,
        charts=change_charts.charts(changes),
        stages=quarantine.read_stages(output),
        speed=_speed(output),
        facts=run_facts.of_run(run),
        model=run_facts.of_model(run),
    )


def _open_slices(output: str, run: Run) -> tuple[RunSlices | None, str]:
    """A reader of the run's slices; without the archive None, and why."""
    uri = run.settings["archive"]
    try:
        archive = Archive(uri, skip_damaged=True)
    except (SegmodelError, OSError) as error:
        return None, f"No pictures, because the archive cannot be read. {error}"
    if archive.info.archive_id != run.fingerprint.archive_id:
        return None, f"No pictures, because {uri} now holds another archive."
    return RunSlices(output, archive, run.fingerprint.shard_slices), ""


def _queue(rows: Sequence[Row], slices: RunSlices | None) -> list[QueuedPatient]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_queued, range(1, len(rows) + 1), rows, repeat(slices)))


def _queued(place: int, row: Row, slices: RunSlices | None) -> QueuedPatient:
    pictures, problem = [], ""
    if slices is not None:
        try:
            pictures = _pictures(slices, row["patient_id"])
        except (SegmodelError, pa.ArrowException, OSError, ValueError) as error:
            # The results are there. One damaged slice must not cost the page.
            problem = f"No pictures: {error}"
        else:
            if row["slices"] and not pictures:
                problem = "No pictures: the masks of this patient are missing in masks/."
    reasons = (row["review_reasons"] or "").split("; ")
    ml = row["tumor_volume_ml"]
    return QueuedPatient(
        anchor=f"patient-{place}",
        row=row,
        volume="volume unknown" if ml is None else ml_text(ml),
        reasons=[reason for reason in reasons if reason],
        pictures=pictures,
        problem=problem,
    )


def _pictures(slices: RunSlices, patient: str) -> list[SlicePicture]:
    shown = slices.of(patient)
    # A few pixels of skull or vessel must not make the brain dark.
    brightest = max((float(np.percentile(one.image_hw, 99.5)) for one in shown), default=1.0)
    several = len({one.series_id for one in shown}) > 1
    return [slice_picture.draw(one, brightest, one.series_id if several else None) for one in shown]


def _allowed(run: Run) -> float:
    return float(run.settings.get("max_quarantined", 0.01))


def _status(run: Run) -> tuple[int, str]:
    """Exit code of the job, and what it means."""
    counts = run.finished_counts
    share = counts.quarantined / max(counts.slices, 1)
    if share > _allowed(run):
        return 3, f"{share:.1%} of the slices are in quarantine, {_allowed(run):.1%} were allowed"
    return 0, "done"


def _tiles(run: Run, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    counts = run.finished_counts
    code = _status(run)[0]
    with_tumor = sum(row["tumor_voxels"] > 0 for row in rows)
    quarantined = counts.quarantined
    level = "bad" if code == 3 else "warn" if quarantined else "good"
    return [
        (number(len(rows)), "patients"),
        (number(with_tumor), "with tumor"),
        (number(counts.segmented), f"of {number(counts.slices)} slices segmented"),
        (number(quarantined), "quarantined", level),
        (number(counts.blank), "blank"),
        (str(code), "exit code", "good" if code == 0 else "bad"),
    ]


def _notes(run: Run, rows: Sequence[Row], missing: str, pictures: bool) -> list[tuple[str, str]]:
    """(text, level) of what a reader must know before any figure."""
    notes = []
    code, meaning = _status(run)
    if code:
        notes.append((f"Exit code {code}: {meaning}. See Quarantine below.", "bad"))
    if run.summary == UNFINISHED:
        notes.append(("jobs.summarize was interrupted here: give its command again.", "bad"))
    unknown = sum(row["tumor_volume_ml"] is None for row in rows)
    if unknown:
        notes.append(
            (
                f"{number(unknown)} of {number(len(rows))} patients have no volume; "
                "the table says why.",
                "warn",
            )
        )
    seen = sum(row["seen_in_training"] in ("train", "validation") for row in rows)
    if seen:
        notes.append(
            (
                f"The model has seen {number(seen)} of {number(len(rows))} patients in training or "
                "validation: its masks of them say nothing about new patients.",
                "warn",
            )
        )
    if missing:
        notes.append((missing, "warn"))
    if not pictures:
        notes.append(("This page was written without pictures of patients.", "info"))
    return notes


_COLUMNS = [
    ("Patient", "text"),
    ("Volume (ml)", "number"),
    (
        "Review score",
        "number",
        "1 minus an estimate of the Dice, from the probabilities of the model",
    ),
    ("Slices", "number"),
    ("Missing", "number", "gaps in the slice numbers, and slices in quarantine"),
    ("With tumor", "number", "slices with at least one tumor pixel"),
    ("Tumor voxels", "number"),
    ("In training", "text", "whether the model has seen this patient"),
    ("What is odd", "long"),
]


def _cells(row: Row) -> list[str | None]:
    ml = row["tumor_volume_ml"]
    odd = [
        row["volume_note"] and f"no volume: {row['volume_note']}"
        if ml is None
        else row["volume_note"]
    ]
    return [
        row["patient_id"],
        None if ml is None else ml_text(ml).removesuffix(" ml"),
        f"{row['review_score']:.2f}",
        number(row["slices"]),
        number(row["slices_missing"]),
        number(row["slices_with_tumor"]),
        number(row["tumor_voxels"]),
        row["seen_in_training"],
        "; ".join(filter(None, [row["review_reasons"], *odd])),
    ]


def _figures(rows: Sequence[Row]) -> list[tuple[Any, str]]:
    """(figure, caption) of the cohort."""
    figures = []
    volumes = [row["tumor_volume_ml"] for row in rows if row["tumor_volume_ml"]]
    voxels = [row["tumor_voxels"] for row in rows if row["tumor_voxels"]]
    without = sum(not row["tumor_voxels"] for row in rows)
    if volumes:
        caption = f"Volumes of {number(len(volumes))} patients. {number(without)} have no tumor."
        figures.append(
            (run_figures.histogram(volumes, "tumor volume (ml)", caption, log=True), caption)
        )
    elif voxels:
        caption = (
            f"Tumor voxels of {number(len(voxels))} patients; none has a volume in ml. "
            f"{number(without)} have no tumor."
        )
        figures.append((run_figures.histogram(voxels, "tumor voxels", caption, log=True), caption))
    estimated = [row["estimated_dice"] for row in rows if row["estimated_dice"] is not None]
    if estimated:
        caption = (
            "Estimated Dice, from the probabilities of the model. "
            "It cannot detect errors of which the model is certain."
        )
        figures.append(
            (run_figures.histogram(estimated, "estimated Dice", caption, log=False), caption)
        )
    return figures


def _speed(output: str) -> Any:
    uri = store.join(output, THROUGHPUT)
    return run_figures.throughput(csv_files.read_csv(uri)) if store.exists(uri) else None
