"""Figures of an evaluation's page: Dice by patient, volumes, Bland-Altman, metrics by group."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from segmodel.report import embed

MAX_NAMED = 40
"""Patients whose ids stand on an axis; more could not be read."""
MAX_LETTERS = 40
"""Of an id on an axis; longer ones would take the place of the figure."""
MAX_POINTS = 400
"""Of a figure; of more patients, equally spaced ones stand for all."""


Values = npt.NDArray[np.float64]
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Agreement:
    """Bland and Altman's values; None where there are too few patients."""

    bias: float | None
    lower_limit: float | None
    upper_limit: float | None


def dice_by_patient(by_segmentation: Mapping[str, Mapping[str, float]], what: str) -> Markup:
    """A line for each patient with a point for each segmentation, the highest Dice at the top.

    Args:
        by_segmentation: Dice by patient; the first segmentation gives the order.
        what: the figure shows, for those who do not see it.
    """
    first = next(iter(by_segmentation.values()))
    patients = sorted(first, key=lambda patient: (first[patient], patient))
    shown = embed.thin(patients, MAX_POINTS)
    named = len(shown) <= MAX_NAMED
    figure, axes = embed.new_figure(5.0, max(2.4, 0.9 + 0.17 * len(shown)) if named else 4.0)
    for place, patient in enumerate(shown if len(by_segmentation) > 1 else []):
        values = [dice[patient] for dice in by_segmentation.values() if patient in dice]
        axes.plot([min(values), max(values)], [place, place], color=embed.INK, alpha=0.25, lw=1.2)
    for (name, dice), color in zip(
        by_segmentation.items(), itertools.cycle(embed.COLORS), strict=False
    ):
        mean = float(np.mean(list(dice.values())))
        places = [place for place, patient in enumerate(shown) if patient in dice]
        axes.axvline(mean, color=color, linestyle="--", linewidth=1)
        axes.plot(
            [dice[shown[place]] for place in places],
            places,
            linestyle="none",
            marker="o",
            markersize=5 if named else 2.5,
            color=color,
            label=_plain(f"{name}, mean {mean:.3f}"),
        )
    axes.set(xlabel="Dice", xlim=(-0.02, 1.02), ylim=(-0.8, len(shown) - 0.2))
    axes.grid(visible=False, axis="y")
    if named:
        labels = [_shortened(patient) for patient in shown]
        axes.set_yticks(range(len(shown)), labels, fontsize=7.5, parse_math=False)
        axes.tick_params(axis="y", length=0)
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(patients):,} patients, in the order of their Dice")
    _legend(axes)
    return embed.svg(figure, what)


def spread(
    columns: Mapping[tuple[str, str], Sequence[float]],
    name: str,
    what: str,
    top: float | None = None,
) -> Markup:
    """Boxes (median, quartiles, whiskers to 1.5 times their distance) with a point a patient.

    Args:
        columns: values by group and segmentation; each has at least one.
        name: of the axis, with its unit.
        what: the figure shows, for those who do not see it.
        top: end of the axis; by default after the largest value.
    """
    segmentations = list(dict.fromkeys(segmentation for _, segmentation in columns))
    groups = list(dict.fromkeys(group for group, _ in columns))
    width = len(segmentations) + 0.6
    generator = np.random.default_rng(0)
    figure, axes = embed.new_figure(3.6, 3.0)
    for (group, segmentation), values in columns.items():
        number = segmentations.index(segmentation)
        place = groups.index(group) * width + number
        color = embed.COLORS[number % len(embed.COLORS)]
        _box(axes, place, values, color)
        points = sorted(values)
        shown = embed.thin(points, MAX_POINTS)
        jitter = generator.uniform(-0.2, 0.2, len(shown)) if len(shown) > 1 else [0.0]
        axes.plot(place + np.asarray(jitter), shown, "o", markersize=3, color=color, alpha=0.7)
    axes.set_xlim(-0.8, len(groups) * width - 0.8)
    middle = (len(segmentations) - 1) / 2
    axes.set_xticks([number * width + middle for number in range(len(groups))], groups)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(name)
    axes.set_ylim(bottom=-0.03 * (top or 0), top=None if top is None else top * 1.03)
    if top is None:
        axes.set_ylim(bottom=0)
    if len(segmentations) > 1:
        for number, segmentation in enumerate(segmentations):
            color = embed.COLORS[number % len(embed.COLORS)]
            axes.plot([], [], "s", color=color, label=_plain(segmentation))
        _legend(axes)
    return embed.svg(figure, what)


def volumes(
    pairs: Sequence[tuple[float, float]], unit: str, what: str, color: str = embed.COLORS[0]
) -> Markup:
    """True against predicted volume of each patient, with the line on which they are equal.

    Args:
        pairs: (true, predicted), at least one.
        unit: of the volumes.
        what: the figure shows, for those who do not see it.
        color: of the points.
    """
    figure, axes = embed.new_figure(5.0, 3.8)
    true, predicted = np.array(pairs, np.float64).T
    end = 1.06 * max(float(true.max()), float(predicted.max()), 1e-6)
    axes.plot([0, end], [0, end], color=embed.INK, linewidth=1, linestyle="--", label="equal")
    _points(axes, true, predicted, color)
    axes.set(xlim=(-0.02 * end, end), ylim=(-0.02 * end, end), aspect="equal")
    axes.set(xlabel=f"true volume ({unit})", ylabel=f"predicted volume ({unit})")
    _thousands(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left", labelcolor=embed.INK)
    return embed.svg(figure, what)


def bland_altman(
    pairs: Sequence[tuple[float, float]],
    agreement: Agreement,
    unit: str,
    what: str,
    color: str = embed.COLORS[0],
) -> Markup:
    """Difference against mean of true and predicted volume, with bias and limits of agreement.

    Args:
        pairs: (true, predicted), at least one.
        agreement: of the same patients.
        unit: of the volumes.
        what: the figure shows, for those who do not see it.
        color: of the points.
    """
    figure, axes = embed.new_figure(5.0, 3.8)
    true, predicted = np.array(pairs, np.float64).T
    _points(axes, (true + predicted) / 2, predicted - true, color)
    lines = {
        "bias": (agreement.bias, "-"),
        f"{MINUS}1.96 SD": (agreement.lower_limit, "--"),
        "+1.96 SD": (agreement.upper_limit, "--"),
    }
    for name, (value, style) in lines.items():
        if value is None:
            continue
        axes.axhline(value, color=embed.INK, linewidth=1.2, linestyle=style)
        axes.annotate(
            f"{name}\n{_short(value)}",
            (1.01, value),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            va="center",
            color=embed.INK,
            annotation_clip=False,
        )
    axes.margins(y=0.12)
    axes.set(
        xlabel=f"mean of true and predicted ({unit})", ylabel=f"predicted {MINUS} true ({unit})"
    )
    _thousands(axes)
    return embed.svg(figure, what)


def _points(axes: Axes, x: Values, y: Values, color: str) -> None:
    chosen = np.array(embed.thin(range(len(x)), MAX_POINTS))
    axes.plot(
        x[chosen],
        y[chosen],
        "o",
        markersize=4.5 if len(chosen) < 100 else 3,
        color=color,
        alpha=0.8,
    )


def _box(axes: Axes, place: float, values: Sequence[float], color: str) -> None:
    line = {"color": color, "linewidth": 1.2}
    axes.boxplot(
        [list(values)],
        positions=[place],
        widths=0.62,
        showfliers=False,
        manage_ticks=False,
        boxprops=line,
        whiskerprops=line,
        capprops=line,
        medianprops={"color": color, "linewidth": 2.4},
    )


def _legend(axes: Axes) -> None:
    axes.legend(
        frameon=False,
        fontsize=8,
        labelcolor=embed.INK,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
        handletextpad=0.3,
    )


def _shortened(patient: str) -> str:
    """An id that leaves room for the figure beside it."""
    return patient if len(patient) <= MAX_LETTERS else f"{patient[: MAX_LETTERS - 1]}…"


def _plain(text: str) -> str:
    """A text in which matplotlib finds no formula; legends cannot be told not to look for one."""
    return text.replace("$", r"\$")


def _thousands(axes: Axes) -> None:
    shown = FuncFormatter(lambda value, _: f"{value:,.10g}".replace("-", MINUS))
    axes.xaxis.set_major_formatter(shown)
    axes.yaxis.set_major_formatter(shown)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _short(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
    return text.replace("-", MINUS)
