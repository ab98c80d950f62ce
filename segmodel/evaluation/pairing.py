"""Truth and prediction side by side: which series can be compared, and the masks of each."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segmodel.analysis.tumor_shape import Mask
from segmodel.core import schema
from segmodel.core.geometry import SPACING_COLUMNS, Spacing
from segmodel.core.mask_png import decode_mask
from segmodel.runs.series_masks import PredictedMasks, RowReader, SeriesRows, Task
from segmodel.storage import store

_COLUMNS = [*schema.INDEX_COLUMNS, "mask"]


@dataclass(frozen=True)
class Pair:
    """One series: its annotated slices, in order, as truth and as predicted."""

    patient_id: str
    series_id: str
    truth: Mask
    """(slices, rows, columns)."""
    predicted: Mask
    """The same shape; nothing where a slice was not segmented."""
    spacing_mm: tuple[float, float, float] | None
    """(slice, row, column); None where one is unknown."""
    slices_without_truth: int
    """Slices of the series that nobody annotated: they are not compared."""
    slices_not_segmented: int
    """Annotated slices for which the run has no mask: they count as without tumor."""


@dataclass(frozen=True)
class Unpaired:
    """A series with truth that cannot be compared, and why."""

    patient_id: str
    series_id: str
    reason: str


def pairs(archive_uri: str, task: Task, run: str) -> Iterator[Pair | Unpaired]:
    """Each annotated series of a task, in turn.

    Args:
        archive_uri: folder of the archive.
        task: from `series_masks.plan`.
        run: folder of a segmentation of that archive.

    Raises:
        SegmentationError: a file of the run cannot be read.
    """
    masks = PredictedMasks(run, task.file)
    with store.open_parquet(store.join(archive_uri, task.file)) as file:
        rows_of = RowReader(file, _COLUMNS)
        for series in task.series:
            rows = rows_of.read(series.first, series.stop)
            annotated = rows.filter(pc.is_valid(rows["mask"]))
            if annotated.num_rows:
                yield _pair(series, rows, annotated, masks.of(series, rows_of))


def _pair(
    series: SeriesRows, rows: pa.Table, annotated: pa.Table, predicted: dict[str, bytes]
) -> Pair | Unpaired:
    annotated = annotated.sort_by("slice_index")
    shapes = set(zip(*(annotated[name].to_pylist() for name in ("height", "width")), strict=True))
    if len(shapes) > 1:
        reason = f"slices of {len(shapes)} sizes: no volume"
        return Unpaired(series.patient_id, series.series_id, reason)
    if len(annotated["slice_index"].unique()) < annotated.num_rows:
        return Unpaired(series.patient_id, series.series_id, "slices with the same number")
    found = [predicted.get(name) for name in annotated["slice_id"].to_pylist()]
    if not any(found):
        return Unpaired(series.patient_id, series.series_id, "not segmented")
    (shape,) = shapes
    decoded = [np.zeros(shape, bool) if png is None else decode_mask(png) for png in found]
    wrong = next((mask.shape for mask in decoded if mask.shape != shape), None)
    if wrong is not None:
        reason = f"its masks are {wrong[0]}x{wrong[1]} pixels, the slices {shape[0]}x{shape[1]}"
        return Unpaired(series.patient_id, series.series_id, reason)
    truth = [
        np.frombuffer(mask.as_buffer(), np.uint8).reshape(shape) > 0 for mask in annotated["mask"]
    ]
    return Pair(
        series.patient_id,
        series.series_id,
        np.stack(truth),
        np.stack(decoded),
        _spacing(annotated),
        rows.num_rows - annotated.num_rows,
        sum(png is None for png in found),
    )


def _spacing(rows: pa.Table) -> tuple[float, float, float] | None:
    """The spacing of a series' slices; None if it is unknown or differs, or slices are missing."""
    values = []
    for name in SPACING_COLUMNS:
        found = rows[name].unique().to_pylist()
        if len(found) != 1 or found[0] is None:
            return None
        values.append(float(found[0]))
    index = rows["slice_index"].to_numpy()
    if int(index[-1] - index[0]) + 1 != len(index):
        return None
    spacing = Spacing(*values)
    spacing.voxel_mm3()  # or an error, for lengths that are none
    return values[0], values[1], values[2]
