"""Pictures of slices and masks, and curves of a training."""

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from segmodel.core.dice import EpochResult, best_epoch
from segmodel.report.embed import COLORS, INK
from segmodel.storage import store

TRUTH_COLOR, PREDICTION_COLOR = "#2ec4b6", "#ff9f1c"
_FILL_OPACITY = 0.35


@dataclass(frozen=True)
class Sample:
    """One slice to show."""

    title: str
    image_hw: npt.NDArray[np.uint8]
    truth_hw: npt.NDArray[np.bool_]
    prediction_hw: npt.NDArray[np.bool_] | None
    """None of a slice that nothing was predicted for."""
    note: str


def compared_slices(
    samples: Sequence[Sample], title: str, uri: str, channel: str = "FLAIR"
) -> None:
    """A PNG with a row a sample: the image, the truth on it, the prediction on it."""
    figure = _figure(7.2, 0.7 + 2.35 * len(samples), title)
    axes = figure.subplots(len(samples), 3, squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        for axis, mask_hw, color in zip(
            row,
            (None, sample.truth_hw, sample.prediction_hw),
            (None, TRUTH_COLOR, PREDICTION_COLOR),
            strict=True,
        ):
            _show(axis, sample.image_hw, mask_hw, color)
        row[0].set_ylabel(sample.title, fontsize=8, parse_math=False)
        row[2].set_xlabel(sample.note, fontsize=8, parse_math=False)
    for axis, name in zip(axes[0], (channel, "truth", "prediction"), strict=True):
        axis.set_title(name, fontsize=10, parse_math=False)  # an id may hold dollars
    _publish(figure, uri)


def sample_slices(
    samples: Sequence[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]],
    title: str,
    uri: str,
) -> None:
    """A PNG with a grid of (name, image (H, W), mask (H, W)): each image with its mask on it."""
    columns = min(4, len(samples))
    rows = -(-len(samples) // columns)
    figure = _figure(2.4 * columns, 0.6 + 2.6 * rows, title)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, image_hw, mask_hw) in zip(axes, samples, strict=False):
        _show(axis, image_hw, mask_hw, TRUTH_COLOR)
        axis.set_title(name, fontsize=7, parse_math=False)
    for axis in axes[len(samples) :]:
        axis.set_axis_off()
    _publish(figure, uri)


def range_test_curve(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
    uri: str,
) -> None:
    """A PNG of the loss against the learning rate, with the suggestion marked, if there is one."""
    figure = _figure(7.2, 4.4, "Learning-rate range test")
    draw_range_test(figure.subplots(), lrs, losses, smoothed, suggestion)
    _publish(figure, uri)


def draw_range_test(
    axis: Axes,
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
) -> None:
    """Draw what `range_test_curve` shows."""
    axis.plot(lrs, losses, color=INK, alpha=0.3, lw=1, marker=".", label="loss of each step")
    axis.plot(lrs, smoothed, color=COLORS[0], linewidth=2, label="smoothed")
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss")
    if suggestion is not None:
        label = f"suggestion {suggestion:.1e}"
        axis.axvline(suggestion, color=COLORS[1], linestyle="--", linewidth=1.5, label=label)
        top = max(smoothed[0], *smoothed[: max(2, len(smoothed) // 2)])
        low = min(losses)
        # Losses after the divergence say nothing more: the axis ends before them.
        axis.set_ylim(low - 0.15 * (top - low), top + 0.6 * (top - low))
    axis.legend(frameon=False, fontsize=8, labelcolor=INK)


def schedule(
    steps: Sequence[int], lrs: Sequence[float], momenta: Sequence[float], uri: str
) -> None:
    """A PNG of learning rate and momentum of each step."""
    figure = _figure(8.4, 3.4, "1cycle schedule")
    left, right = figure.subplots(1, 2)
    draw_schedule(left, steps, lrs, "learning rate", COLORS[0])
    draw_schedule(right, steps, momenta, "momentum", COLORS[1])
    _publish(figure, uri)


def draw_schedule(
    axis: Axes, steps: Sequence[int], values: Sequence[float], name: str, color: str
) -> None:
    """Draw a value of each step."""
    axis.plot(steps, values, color=color, linewidth=2)
    axis.set(xlabel="step", ylabel=name)


def history(epochs: Sequence[EpochResult], uri: str) -> None:
    """A PNG of losses and Dice of each epoch, with the best epoch marked."""
    figure = _figure(8.4, 3.6, "Training")
    left, right = figure.subplots(1, 2)
    draw_losses(left, epochs)
    draw_dice(right, epochs)
    _publish(figure, uri)


def draw_losses(axis: Axes, epochs: Sequence[EpochResult]) -> None:
    """Draw both losses of each epoch."""
    lines = {"train_loss": "training", "valid_loss": "validation"}
    _draw_epochs(axis, epochs, lines, "loss")


def draw_dice(axis: Axes, epochs: Sequence[EpochResult]) -> None:
    """Draw the Dice of each epoch, with the best epoch marked."""
    lines = {"dice": "all validation voxels", "patient_dice": "mean of the patients"}
    if any(result.tumor_patient_dice not in (None, result.patient_dice) for result in epochs):
        lines["tumor_patient_dice"] = "mean of those with tumor"
    _draw_epochs(axis, epochs, lines, "Dice")
    best = best_epoch(epochs)
    axis.axvline(best.epoch, color=INK, alpha=0.4, linestyle="--", linewidth=1)
    axis.set_title(f"best: epoch {best.epoch}, Dice {best.dice:.3f}", fontsize=9, color=INK)
    axis.set_ylim(0, 1)


def _draw_epochs(
    axis: Axes, epochs: Sequence[EpochResult], lines: Mapping[str, str], label: str
) -> None:
    numbers = [result.epoch for result in epochs]
    for (field, name), color in zip(lines.items(), COLORS, strict=False):
        values = [getattr(result, field) for result in epochs]
        axis.plot(numbers, values, color=color, lw=2, marker="o", markersize=3, label=name)
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=8, labelcolor=INK)


def patient_dice(models: Mapping[str, Mapping[str, float]], uri: str) -> None:
    """A PNG of each patient's Dice under each model, the patients in the order of their mean."""
    patients = sorted(
        next(iter(models.values())),
        key=lambda patient: sum(dice[patient] for dice in models.values()),
    )
    figure = _figure(max(6.0, 1.5 + 0.28 * len(patients)), 4.2, "3D Dice of each patient")
    axis = figure.subplots()
    places = range(len(patients))
    for place, patient in enumerate(patients):
        values = [dice[patient] for dice in models.values()]
        axis.plot([place, place], [min(values), max(values)], color="0.85", linewidth=2, zorder=1)
    for (name, dice), color in zip(models.items(), itertools.cycle(COLORS), strict=False):
        mean = sum(dice.values()) / len(dice)
        axis.scatter(
            places,
            [dice[p] for p in patients],
            color=color,
            s=28,
            zorder=2,
            label=f"{name}, mean {mean:.3f}",
        )
        axis.axhline(mean, color=color, linestyle="--", linewidth=1, zorder=0)
    axis.set_xticks(places, patients, rotation=90, fontsize=6)
    axis.set(ylabel="Dice", ylim=(-0.02, 1.02))
    axis.legend(frameon=False, fontsize=8)
    _publish(figure, uri)


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    return figure


def _publish(figure: Figure, uri: str) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    store.publish(uri, png.getvalue())


def _show(
    axis: Axes,
    image_hw: npt.NDArray[np.uint8],
    mask_hw: npt.NDArray[np.bool_] | None,
    color: str | None,
) -> None:
    axis.imshow(image_hw, cmap="gray", vmin=0, vmax=max(1, int(image_hw.max())))
    axis.set_xticks([])
    axis.set_yticks([])
    if mask_hw is not None and color is not None and mask_hw.any():
        red, green, blue = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
        overlay = np.zeros((*mask_hw.shape, 4))
        overlay[mask_hw] = (red, green, blue, _FILL_OPACITY)
        axis.imshow(overlay)
        if min(mask_hw.shape) > 1:
            axis.contour(mask_hw, levels=[0.5], colors=[color], linewidths=1.2)
