"""What an ingest would choose and leave out, for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segmodel.core.progress import Progress
from segmodel.runtime import ray_cluster
from segmodel.runtime.ray_tasks import map_on_ray
from segmodel.settings.ingest import IngestConfig
from segmodel.sources.base import Source, read_patient
from segmodel.sources.registry import open_source


def show_choices(config: IngestConfig) -> str:
    """What an ingest would choose and leave out, for people; nothing is written.

    Raises:
        SourceError: there is nothing to read.
    """
    with ray_cluster.connect():
        source = open_source(config, map_on_ray)
        patients = source.patients()
        progress = Progress(len(patients), "patients")
        choices, series, rejects = [], [], source.problems()
        usable = slices = 0
        tasks = ((source.restricted_to(name), name) for name in patients)
        for found in map_on_ray(_look, tasks, lost=_lost):
            choices += found.choices
            series += found.series
            rejects += found.rejects
            usable += found.slices > 0
            slices += found.slices
            progress.advance(1)
    lines = [choices_table(choices) if choices else series_table(series)]
    rejects.sort(key=lambda row: (row.get("patient_id") or "", row["source_uri"]))
    lines += [_left_out(row) for row in rejects]
    lines.append(f"{usable} of {len(patients)} patients have usable data: {slices} slices")
    return "\n".join(lines)


def _left_out(row: Mapping[str, Any]) -> str:
    """A line about a row of `schema.REJECTS`."""
    patient = f"patient {row['patient_id']}, " if row.get("patient_id") else ""
    return f"left out: {patient}{row['source_uri']}: {row['reason']}"


def series_table(series: Sequence[Mapping[str, Any]]) -> str:
    """A table of what an ingest would do with each study, in formats without a choice of series.

    Args:
        series: rows of `schema.ARCHIVE_SERIES`.
    """
    rows: list[tuple[str, ...]] = [("patient", "series", "slices", "mask labels", "channels")]
    for row in sorted(series, key=lambda row: (row["patient_id"], row["series_id"])):
        labels = ", ".join(str(label) for label, _ in row["label_voxels"] or ())
        channels = "; ".join(f"{one['name']}: {one['because']}" for one in row["channels"])
        rows.append((row["patient_id"], row["series_id"], str(row["slices"]), labels, channels))
    return _aligned(rows)


def choices_table(choices: Sequence[Mapping[str, Any]]) -> str:
    """Which series of each study is which sequence, for people.

    Args:
        choices: rows of `schema.SERIES_CHOICES`.
    """
    header = ("patient", "date", "series", "images", "plane", "chosen as", "because")
    rows: list[tuple[str, ...]] = [header]
    for row in sorted(
        choices,
        key=lambda row: (row["patient_id"], str(row["study_date"]), row["series_number"] or 0),
    ):
        taken = row["sequence"] or ""
        if taken and not row["chosen"]:
            taken = f"({taken})"
        series = f"{row['series_number'] or ''} {row['description'] or ''}".strip()
        cells = (
            row["patient_id"],
            row["study_date"],
            series,
            row["images"],
            row["plane"],
            taken,
            row["because"],
        )
        rows.append(tuple("" if cell is None else str(cell) for cell in cells))
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns below each other; the last may be long."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )


@dataclass(frozen=True)
class _Found:
    """What one patient's files hold, without pixels."""

    choices: list[Any]
    series: list[Any]
    rejects: list[Any]
    slices: int


def _look(task: tuple[Source, str]) -> _Found:
    source, patient = task
    record = read_patient(source, patient)
    return _Found(
        choices=record.choices.to_pylist(),
        series=record.series.to_pylist(),
        rejects=record.rejects.to_pylist(),
        slices=record.slices.num_rows,
    )


def _lost(task: tuple[Source, str], reason: str) -> _Found:
    source, patient = task
    row = {"source_uri": source.location_of(patient), "patient_id": patient, "reason": reason}
    return _Found([], [], [row], 0)
