"""Pictures of slices and masks."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from segmodel import storage

TRUTH_COLOR, PREDICTION_COLOR = "#2ec4b6", "#ff9f1c"
_FILL_OPACITY = 0.35


@dataclass(frozen=True)
class Sample:
    """One slice to show."""

    title: str
    image_hw: npt.NDArray[np.uint8]
    truth_hw: npt.NDArray[np.bool_]
    prediction_hw: npt.NDArray[np.bool_]
    note: str


def contact_sheet(samples: Sequence[Sample], title: str, uri: str) -> None:
    """A PNG with a row a sample: the image, the truth on it, the prediction on it."""
    figure = Figure(figsize=(7.2, 0.7 + 2.35 * len(samples)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(samples), 3, squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        for axis, mask_hw, color in zip(
            row, (None, sample.truth_hw, sample.prediction_hw), (None, TRUTH_COLOR, PREDICTION_COLOR), strict=True
        ):
            _show(axis, sample.image_hw, mask_hw, color)
        row[0].set_ylabel(sample.title, fontsize=8)
        row[2].set_xlabel(sample.note, fontsize=8)
    for axis, name in zip(axes[0], ("FLAIR", "truth", "prediction"), strict=True):
        axis.set_title(name, fontsize=10)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    storage.publish(uri, png.getvalue())


def _show(axis: Axes, image_hw: npt.NDArray[np.uint8], mask_hw: npt.NDArray[np.bool_] | None, color: str | None) -> None:
    axis.imshow(image_hw, cmap="gray", vmin=0, vmax=max(1, int(image_hw.max())))
    axis.set_xticks([])
    axis.set_yticks([])
    if mask_hw is not None and color is not None and mask_hw.any():
        red, green, blue = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
        overlay = np.zeros((*mask_hw.shape, 4))
        overlay[mask_hw] = (red, green, blue, _FILL_OPACITY)
        axis.imshow(overlay)
        axis.contour(mask_hw, levels=[0.5], colors=[color], linewidths=1.2)
