"""Figures of a segmentation's page."""

import itertools
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from segmodel.report import embed

MAX_POINTS = 300
"""Of a curve; more would not be seen."""
_SAME_START_S = 2.0
"""Times of throughput.csv are whole seconds."""


def histogram(values: Sequence[float], name: str, what: str, *, log: bool) -> Markup:
    """Bars of how many patients have a value.

    Args:
        values: at least one; greater than 0 where `log`.
        name: of the axis, with its unit.
        what: the figure shows, for those who do not see it.
        log: axis and bins are logarithmic; otherwise they run from 0 to 1.
    """
    figure, axes = embed.new_figure(5.0, 2.6)
    if log:
        low, high = np.floor(np.log10(min(values))), np.ceil(np.log10(max(values)))
        bins = np.logspace(low, max(high, low + 1), 8 * int(max(high - low, 1)) + 1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.minorticks_off()
    else:
        bins = np.linspace(0, 1, 21)
    axes.hist(values, bins=bins.tolist(), color=embed.COLORS[0])
    median = float(np.median(values))
    axes.axvline(median, color=embed.COLORS[1], linewidth=1.4)
    text = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
    axes.set_title(f"median {text}", fontsize=9, color=embed.COLORS[1], loc="right")
    axes.set_xlabel(name)
    _count_axis(axes, "patients")
    return embed.svg(figure, what)


def speed_points(rows: Sequence[Mapping[str, str]]) -> list[list[tuple[float, float]]]:
    """(seconds of work so far, slices/s since the point before), a list for each call of the job.

    Args:
        rows: of throughput.csv: `time`, `slices` by this call so far, `slices_per_second` since
            its start.
    """
    calls: list[list[tuple[float, int]]] = []
    started = before = float("-inf")
    for row in rows:
        now, slices = datetime.fromisoformat(row["time"]).timestamp(), int(row["slices"])
        rate = float(row["slices_per_second"])
        if rate <= 0:
            continue
        if now - slices / rate > before - _SAME_START_S:  # begun after the row before
            started = now - slices / rate
            calls.append([(0.0, 0)])
        if now - started >= calls[-1][-1][0] + 1:
            calls[-1].append((now - started, slices))
        before = now
    offset, result = 0.0, []
    for call in calls:
        step = -(-len(call) // MAX_POINTS)
        kept = [*call[:-1:step], call[-1]]
        result.append(
            [
                (offset + then, (slices - earlier) / (then - since))
                for (since, earlier), (then, slices) in itertools.pairwise(kept)
            ]
        )
        offset += call[-1][0]
    return [call for call in result if call]


def throughput(rows: Sequence[Mapping[str, str]]) -> Markup | None:
    """Slices/s over the working time of the run; None where there are too few rows."""
    calls = speed_points(rows)
    if sum(map(len, calls)) < 3:
        return None
    longest = calls[-1][-1][0]
    unit, seconds = ("hours", 3600.0) if longest > 7200 else ("minutes", 60.0)
    figure, axes = embed.new_figure(5.0, 2.6)
    start = 0.0
    for number, call in enumerate(calls):
        times = [start, *(then for then, _ in call)]
        rates, edges = [rate for _, rate in call], [then / seconds for then in times]
        axes.stairs(rates, edges, baseline=None, color=embed.COLORS[0], linewidth=1.6)
        if number:
            axes.axvline(start / seconds, color=embed.INK, linestyle=":", linewidth=1)
        start = times[-1]
    axes.set_ylim(0, 1.1 * max(rate for call in calls for _, rate in call))
    axes.set_xlim(0, longest / seconds)
    axes.set(xlabel=f"{unit} of work", ylabel="slices a second")
    return embed.svg(figure, "slices a second over time")


def _count_axis(axes: Axes, name: str) -> None:
    axes.set_ylabel(name)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.grid(visible=False, axis="x")
