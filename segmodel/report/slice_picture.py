"""A slice on a page: the picture under vector outlines, sides and a scale bar."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from segmodel.core.dice import dice
from segmodel.report import embed
from segmodel.report.patient_slices import ShownSlice

MAX_SIDE = 512
"""Pixels of a picture's longer side; larger slices are scaled down."""
_BARS_MM = (50, 20, 10, 5, 2, 1)


@dataclass(frozen=True)
class SlicePicture:
    """What `slice` of parts.html draws."""

    uri: str
    """A `data:` URI."""
    size: tuple[int, int]
    """Width and height of the picture; its pixels are square."""
    grid: tuple[int, int]
    """Columns and rows of the slice: the coordinates of the outlines."""
    predicted: str
    """SVG path data; empty without tumor."""
    truth: str | None
    """SVG path data; None where nobody has annotated."""
    sides: tuple[str, str, str, str] | None
    """Of the patient, at the top, right, bottom and left."""
    bar: tuple[float, str] | None
    """Length of the scale bar in columns, and its text; None where the spacing is unknown."""
    alt: str
    caption: str


def draw(shown: ShownSlice, brightest: float, series: str | None) -> SlicePicture:
    """The parts of one slice's picture.

    Args:
        shown: the slice.
        brightest: the value that becomes white.
        series: named in the caption; None where the patient has one only.
    """
    height, width = shown.image_hw.shape
    place = f"Slice {shown.slice_index} of {shown.last_index}"
    caption = [f"Series {series}"] if series else []
    caption += [place, shown.why]
    if shown.truth_hw is not None and (shown.truth_hw.any() or shown.prediction_hw.any()):
        caption.append(f"Dice here {dice(shown.prediction_hw, shown.truth_hw):.2f}")
    grey = np.clip(shown.image_hw * (255.0 / max(brightest, 1)), 0, 255).astype(np.uint8)
    size = _size(height, width, shown.row_mm, shown.column_mm)
    if size != (width, height):
        grey = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.LANCZOS))
    return SlicePicture(
        uri=embed.picture(grey),
        size=size,
        grid=(width, height),
        predicted=outline(shown.prediction_hw),
        truth=None if shown.truth_hw is None else outline(shown.truth_hw),
        sides=shown.sides,
        bar=scale_bar(width, shown.column_mm),
        alt=place,
        caption=" · ".join(caption),
    )


def outline(mask_hw: npt.NDArray[np.bool_]) -> str:
    """SVG path data of the mask's outline; (0, 0) is the slice's upper left corner.

    Args:
        mask_hw: bool, (rows, columns).
    """
    padded = np.pad(mask_hw, 1)
    rows = _runs(padded[1:, 1:-1] != padded[:-1, 1:-1])
    columns = _runs((padded[1:-1, 1:] != padded[1:-1, :-1]).T)
    lines = [f"M{start} {row}h{length}" for row, start, length in rows]
    return "".join(lines + [f"M{column} {start}v{length}" for column, start, length in columns])


def scale_bar(columns: int, column_mm: float | None) -> tuple[float, str] | None:
    """(length in columns, text) of a bar of at most a third of the slice; None without spacing."""
    if not column_mm:
        return None
    for length in _BARS_MM:
        if length <= columns * column_mm / 3:
            return length / column_mm, f"{length} mm"
    return None


def _runs(edges: npt.NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """(line, start, length) of each run of edges along the lines."""
    changes = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    line, start = np.nonzero(changes == 1)
    stop = np.nonzero(changes == -1)[1]
    return list(zip(line.tolist(), start.tolist(), (stop - start).tolist(), strict=True))


def _size(
    height: int, width: int, row_mm: float | None, column_mm: float | None
) -> tuple[int, int]:
    """Width and height of a picture with square pixels, not larger than `MAX_SIDE`."""
    tall, wide = (height * row_mm, width * column_mm) if row_mm and column_mm else (height, width)
    # The finer axis keeps its pixels.
    scale = max(height / tall, width / wide)
    scale = min(scale, MAX_SIDE / max(tall, wide))
    return max(1, round(wide * scale)), max(1, round(tall * scale))
