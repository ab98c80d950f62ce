"""Runs the model on the slices of a shard, and makes rows of masks and quarantine."""

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from segmodel.archive.slice_format import images
from segmodel.core import schema
from segmodel.core.mask_png import encode_empty_mask, encode_packed_mask
from segmodel.inference.predictor import PendingPrediction, Prediction, Predictor
from segmodel.runs.shard_reader import quarantine_rows

NO_NUMBER = (
    "the network's output is NaN or infinite (its values became too large: try another model or "
    "another precision)"
)
BATCHES_AHEAD = 2
"""Batches that are begun before the first is waited for, so that a GPU always has the next one."""
_COPIED = [name for name in schema.MASKS.names if name in schema.ARCHIVE.names and name != "mask"]


class PendingBatch:
    """A batch in flight: the slices' metadata and their pending prediction."""

    def __init__(self, slices: pa.Table, pending: PendingPrediction) -> None:
        self.slices, self.wait = slices, functools.cache(pending)


def begin_batches(
    predictor: Predictor, table: pa.Table, report: Callable[[int], None]
) -> tuple[list[PendingBatch], pa.Table]:
    """Begin the predictions of some slices; the last few may still be running on return.

    Args:
        predictor: the model.
        table: the columns of `schema.ARCHIVE` that a segmentation reads.
        report: called with the number of slices of each batch.

    Returns:
        The batches, and `schema.QUARANTINE` for slices that do not fit in memory.
    """
    begun: list[PendingBatch] = []
    lost = [schema.QUARANTINE.empty_table()]
    batches = deque(_batches(table, predictor.batch_size))
    while batches:
        rows = batches.popleft()
        try:
            begun.append(_begin(predictor, table, rows))
        except MemoryError as error:
            if len(rows) > 1:
                batches.extendleft([row] for row in reversed(rows))
                continue
            lost.append(quarantine_rows(table, rows, "predict", [str(error)]))
        if len(begun) > BATCHES_AHEAD:
            begun[-1 - BATCHES_AHEAD].wait()
        report(len(rows))
    return begun, pa.concat_tables(lost)


def collect_masks(begun: list[PendingBatch]) -> tuple[pa.Table, pa.Table]:
    """Wait for the predictions.

    Returns:
        `schema.MASKS`, and `schema.QUARANTINE` for slices whose probabilities are not finite.
    """
    masks, lost = [schema.MASKS.empty_table()], [schema.QUARANTINE.empty_table()]
    for batch in begun:
        prediction = batch.wait()
        is_number_n = np.isfinite(prediction.probability_sum_n)
        rows = _mask_rows(batch.slices, prediction)
        wrong = np.flatnonzero(~is_number_n).tolist()
        masks.append(rows.filter(pa.array(is_number_n)) if wrong else rows)
        lost.append(quarantine_rows(batch.slices, wrong, "predict", [NO_NUMBER] * len(wrong)))
    return pa.concat_tables(masks), pa.concat_tables(lost)


def _batches(table: pa.Table, batch_size: int) -> Iterator[list[int]]:
    """Row numbers of slices of one size, at most a batch of them."""
    shapes = list(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True))
    by_shape = sorted(range(table.num_rows), key=lambda row: shapes[row])
    for _, group in groupby(by_shape, key=lambda row: shapes[row]):
        same = list(group)
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]


def _begin(predictor: Predictor, table: pa.Table, rows: list[int]) -> PendingBatch:
    if rows[-1] - rows[0] + 1 == len(rows):
        chosen = table.slice(rows[0], len(rows))
    else:
        # table.take would copy all pixels, and fail from 2 GiB on.
        chosen = pa.concat_tables([table.slice(row, 1) for row in rows])
    height, width = chosen["height"][0].as_py(), chosen["width"][0].as_py()
    pixels_nhwc = images(chosen["pixels"], height, width, predictor.card.model.channels)
    return PendingBatch(chosen.select(_COPIED), predictor.begin(pixels_nhwc))


def _mask_rows(slices: pa.Table, prediction: Prediction) -> pa.Table:
    empty = encode_empty_mask(prediction.bits_nhb.shape[1], prediction.width)
    masks = zip(prediction.bits_nhb, prediction.tumor_pixels_n, strict=True)
    columns = {name: slices[name] for name in _COPIED} | {
        "mask": [
            encode_packed_mask(bits_hb, prediction.width) if pixels else empty
            for bits_hb, pixels in masks
        ],
        "tumor_pixels": prediction.tumor_pixels_n,
        "mean_probability": [
            None if math.isnan(mean) else mean for mean in prediction.mean_probability_n.tolist()
        ],
        "probability_sum": prediction.probability_sum_n,
    }
    return pa.table(
        [_column(columns[field.name], field.type) for field in schema.MASKS], schema=schema.MASKS
    )


def _column(values: Any, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)
