"""Counts of each series over all its slices, in Arrow alone: no Python object a slice, some 40 bytes a slice of memory."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import acero

from segmodel import runfolder, schema, storage
from segmodel.progress import Progress

READ_THREADS = 16
"""More than cores: on an object store they mostly wait."""
FILES_AT_ONCE = 256
"""Read ahead of the counting; bounds what waits in memory."""

KEYS = ["patient_id", "series_id"]
_SPACINGS = ["slice_spacing_mm", "row_spacing_mm", "column_spacing_mm"]
_READ = [*KEYS, "slice_index", "height", "width", *_SPACINGS, "tumor_pixels", "uncertainty"]

SLICES = pa.schema([*(schema.MASKS.field(name) for name in _READ), pa.field("file", pa.int32()), pa.field("tumor", pa.int32())])
"""The light columns of a slice, the number of the file it lies in, and 1 where it has tumor."""

_EVERY = pc.CountOptions(mode="all")  # an unknown spacing is a spacing of its own

COUNTS = {
    "slices": ("slice_index", "hash_count", None),
    "different": ("slice_index", "hash_count_distinct", None),
    "first": ("slice_index", "hash_min", None),
    "last": ("slice_index", "hash_max", None),
    "slices_with_tumor": ("tumor", "hash_sum", None),
    "tumor_voxels": ("tumor_pixels", "hash_sum", None),
    "uncertainty": ("uncertainty", "hash_mean", None),
    "files": ("file", "hash_distinct", None),
    "heights": ("height", "hash_count_distinct", None),
    "widths": ("width", "hash_count_distinct", None),
    **{name: (name, "hash_one", None) for name in _SPACINGS},
    **{f"{name}_count": (name, "hash_count_distinct", _EVERY) for name in _SPACINGS},
}
"""What is counted of a series: name, then column, Arrow's function and its options."""


def read_slices(folder: str, names: list[str]) -> Iterator[pa.RecordBatch]:
    """`SLICES` of all mask files of a folder, in their order, read ahead by several threads."""
    progress = Progress(len(names), "mask files counted")

    def read(number: int) -> pa.Table:
        table = runfolder.read_table(storage.join(folder, names[number]), _READ)
        more = [pa.repeat(pa.scalar(number, pa.int32()), table.num_rows), pc.greater(table["tumor_pixels"], 0).cast(pa.int32())]
        return pa.table([*table.select(_READ).columns, *more], schema=SLICES)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        for start in range(0, len(names), FILES_AT_ONCE):
            for table in pool.map(read, range(start, min(start + FILES_AT_ONCE, len(names)))):
                yield from table.to_batches()
                progress.advance(1)


def count_series(slices: Iterable[pa.RecordBatch]) -> pa.Table:
    """One row a series, sorted: `KEYS` and `COUNTS`.

    Args:
        slices: `SLICES`, in any order; the rows of a series may lie in several batches.
    """
    reader = pa.RecordBatchReader.from_batches(SLICES, slices)
    aggregates = [(*how, name) for name, how in COUNTS.items()]
    plan = acero.Declaration.from_sequence(
        [
            acero.Declaration("record_batch_reader_source", acero.RecordBatchReaderSourceNodeOptions(reader)),
            acero.Declaration("aggregate", acero.AggregateNodeOptions(aggregates, keys=KEYS)),
        ]
    )
    return plan.to_table().sort_by([(key, "ascending") for key in KEYS])


def quarantined_outside(counts: pa.Table, quarantined: pa.Table) -> pa.Table:
    """How many slices each series lacks beyond the gaps in its numbers: `KEYS` and `outside`, a row a series with quarantine.

    A quarantined slice between two segmented ones is a gap already. One at either end, one without an index, or one of a
    series of which nothing could be segmented, is missing on top; but a blank one at either end holds no tissue, and nothing
    of the volume.

    Args:
        counts: from `count_series`.
        quarantined: `schema.QUARANTINE`; rows without a patient are left out.
    """
    known = quarantined.select([*KEYS, "slice_index", "stage"]).filter(pc.is_valid(quarantined["patient_id"]))
    joined = known.join(counts.select([*KEYS, "first", "last"]), KEYS, join_type="left outer")
    after_first = pc.greater_equal(joined["slice_index"], joined["first"])
    before_last = pc.less_equal(joined["slice_index"], joined["last"])
    inside = pc.fill_null(pc.and_(after_first, before_last), False)
    harmless = pc.and_(pc.equal(joined["stage"], schema.BLANK), pc.is_valid(joined["first"]))
    outside = pc.invert(pc.or_(inside, harmless)).cast(pa.int64())
    sums = joined.select(KEYS).append_column("outside", outside).group_by(KEYS).aggregate([("outside", "sum")])
    return sums.rename_columns([*KEYS, "outside"])
