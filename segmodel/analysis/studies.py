"""The study that each series of a run belongs to: its date and what each channel shows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa

from segmodel.archive.reader import Archive
from segmodel.archive.slice_file import read_series
from segmodel.core import schema
from segmodel.core.progress import say
from segmodel.runs import run_folder

SeriesKey = tuple[str, str | None]
"""Patient and series; the series is None for slices that name none."""


@dataclass(frozen=True)
class Study:
    """The study of one series."""

    date: date | None
    missing: tuple[str, ...] | None
    """Sequences that it lacks, whose channel shows another one; None where that is unknown."""
    descriptions: Mapping[str, str]
    """The scanner's name of each channel's sequence, where it is known."""


Studies = Mapping[SeriesKey, Study]


def of_archive(archive: Archive) -> dict[SeriesKey, Study]:
    """The studies of an archive, from its table of series; none in archives of version 1.

    A table that cannot be read gives none and a line that says so: volumes need no dates.
    """
    try:
        rows = read_series(archive.uri, archive.files).to_pylist()
    except (pa.ArrowException, OSError) as error:
        say(f"{archive.uri}: the dates of its studies cannot be read: {error}")
        return {}
    return {(row["patient_id"], row["series_id"]): _study(row) for row in rows}


def of_run(output: str) -> dict[SeriesKey, Study]:
    """The dates that a run's own table of series has; what channels show is not in it."""
    table = run_folder.read_summary(
        output, "series.parquet", ["patient_id", "series_id", "study_date"]
    )
    return {
        (row["patient_id"], row["series_id"]): Study(row["study_date"], None, {})
        for row in table.to_pylist()
    }


def common_date(dates: Iterable[date | None]) -> date | None:
    """The date that all have; None if they differ, or if one is unknown."""
    different = set(dates)
    return different.pop() if len(different) == 1 else None


def _study(row: dict[str, Any]) -> Study:
    channels = row["channels"]
    missing = [one["name"] for one in channels if schema.STANDS_IN in (one["because"] or "")]
    descriptions = {
        one["name"]: one["description"]
        for one in channels
        if one["description"] and one["name"] not in missing
    }
    return Study(row["study_date"], tuple(missing), descriptions)
