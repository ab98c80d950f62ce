"""Change over time on a segmentation's page: a chart per patient, a table of all intervals."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from segmodel.core import schema
from segmodel.core.rounding import rounded
from segmodel.report import embed
from segmodel.runs import run_folder
from segmodel.storage import store

CHARTS = 24
"""Patients with a chart: those whose volume changed most."""
COLUMNS = [
    ("Patient", "text"),
    ("From", "text"),
    ("To", "text"),
    ("Days", "number"),
    ("Before (ml)", "number"),
    ("After (ml)", "number"),
    ("Change (ml)", "number"),
    ("Change (%)", "number"),
    ("ml a month", "number"),
    ("Caution", "long", "what speaks against comparing the two volumes"),
]

Row = dict[str, Any]


def read_changes(output: str) -> list[Row]:
    """Rows of `schema.CHANGES` of a run folder; none where no date is known."""
    if not store.exists(store.join(output, "changes.parquet")):
        return []
    table = run_folder.read_summary(output, "changes.parquet", schema.CHANGES.names)
    rows: list[Row] = table.to_pylist()
    return rows


def cells(row: Row) -> list[str | None]:
    """A row of the table with `COLUMNS`."""
    return [
        row["patient_id"],
        str(row["first_date"]),
        str(row["second_date"]),
        f"{row['days']:,}",
        *(
            _number(name, row[name], signed=name.startswith("difference"))
            for name in (
                "first_volume_ml",
                "second_volume_ml",
                "difference_ml",
                "difference_percent",
                "difference_ml_per_month",
            )
        ),
        row["caution"] or "",
    ]


def charts(rows: Sequence[Row]) -> list[tuple[Markup, str]]:
    """(chart, caption) of the patients whose volume changed most from one study to another.

    Args:
        rows: from `read_changes`, sorted by patient.
    """
    found = []
    for patient, of_patient in groupby(rows, key=lambda row: row["patient_id"]):
        intervals = list(of_patient)
        differences = [abs(row["difference_ml"] or 0.0) for row in intervals]
        found.append((max(differences), patient, [r for r in intervals if r["interval"] == "next"]))
    found.sort(key=lambda each: (-each[0], each[1]))
    return [_chart(patient, intervals) for _, patient, intervals in found[:CHARTS]]


def _chart(patient: str, intervals: Sequence[Row]) -> tuple[Markup, str]:
    """Volumes over time; a line is dashed where a caution speaks against the comparison."""
    figure, axes = embed.new_figure(3.2, 1.8)
    start = intervals[0]["first_date"]
    volumes: dict[int, float | None] = {}
    for row in intervals:
        times = [(row[name] - start).days for name in ("first_date", "second_date")]
        pair = [row["first_volume_ml"], row["second_volume_ml"]]
        volumes.update(zip(times, pair, strict=True))
        if row["difference_ml"] is not None:
            style = "--" if row["caution"] else "-"
            axes.plot(times, pair, color=embed.COLORS[0], linestyle=style)
    known = {time: volume for time, volume in volumes.items() if volume is not None}
    axes.plot(list(known), list(known.values()), "o", color=embed.COLORS[0], markersize=4)
    last = max(volumes)
    axes.set_xlim(-0.05 * last, 1.05 * last)
    axes.set_ylim(0, 1.15 * max(known.values(), default=1.0) or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set(xlabel=f"days since {start}", ylabel="ml")
    careful = sum(bool(row["caution"]) for row in intervals)
    caption = f"{patient}: {len(volumes)} studies"
    if len(known) < len(volumes):
        caption += f", {len(volumes) - len(known)} without a volume"
    return embed.svg(figure, caption), caption + (", with cautions" if careful else "")


def _number(name: str, value: float | None, *, signed: bool) -> str | None:
    if value is None:
        return None
    return f"{rounded(name, value):+,}" if signed else f"{rounded(name, value):,}"
