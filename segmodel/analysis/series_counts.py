"""Counts of each series over all its slices.

They are made in Arrow alone, without a Python object a slice: some 100 bytes a slice of memory.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import acero

from segmodel.core import schema
from segmodel.core.geometry import SPACING_COLUMNS, Spacing
from segmodel.core.progress import Progress
from segmodel.runs import run_folder
from segmodel.storage import store

READ_THREADS = 16
"""More than cores: on an object store they mostly wait."""
FILES_AT_ONCE = 256
"""Read ahead of the counting; bounds what waits in memory."""

KEYS = ["patient_id", "series_id"]
LOST = [*KEYS, "slice_index", "stage"]
"""What of `schema.QUARANTINE` counts."""
_READ = [
    *KEYS,
    "slice_index",
    "height",
    "width",
    *SPACING_COLUMNS,
    "tumor_pixels",
    "probability_sum",
]

SLICES = pa.schema(
    [
        *(schema.QUARANTINE.field(name) for name in KEYS),
        *(schema.MASKS.field(name).with_nullable(True) for name in _READ[len(KEYS) :]),
        pa.field("probability_in_mask", pa.float64()),
        pa.field("file", pa.int32()),
        pa.field("tumor", pa.int32()),
        pa.field("any_index", pa.int32()),
        pa.field("tissue_index", pa.int32()),
    ]
)
"""A slice, segmented or in quarantine. A segmented one has its mask's light columns, its file's
number, and 1 in `tumor` if it has any. Every one has its slice index in `any_index` and, unless it
is blank, in `tissue_index`."""

COUNTS = {
    "slices": ("slice_index", "hash_count", None),
    "different": ("slice_index", "hash_count_distinct", None),
    "first": ("any_index", "hash_min", None),
    "last": ("any_index", "hash_max", None),
    "indices": ("any_index", "hash_count_distinct", None),
    "with_index": ("any_index", "hash_count", None),
    "without_index": ("any_index", "hash_count", pc.CountOptions(mode="only_null")),
    "first_tissue": ("tissue_index", "hash_min", None),
    "last_tissue": ("tissue_index", "hash_max", None),
    "slices_with_tumor": ("tumor", "hash_sum", None),
    "tumor_voxels": ("tumor_pixels", "hash_sum", None),
    "probability_sum": ("probability_sum", "hash_sum", None),
    "probability_in_mask": ("probability_in_mask", "hash_sum", None),
    "files": ("file", "hash_distinct", pc.CountOptions(mode="only_valid")),
    "heights": ("height", "hash_count_distinct", None),
    "widths": ("width", "hash_count_distinct", None),
    **{name: (name, "hash_max", None) for name in SPACING_COLUMNS},
    **{f"{name}_known": (name, "hash_count", None) for name in SPACING_COLUMNS},
    **{f"{name}_count": (name, "hash_count_distinct", None) for name in SPACING_COLUMNS},
}
"""What is counted of a series: name, then column, Arrow's function and its options. Only
`without_index` counts nulls."""


@dataclass(frozen=True, kw_only=True)
class SeriesCounts:
    """What was counted of one series, over its segmented slices and those in quarantine."""

    patient_id: str
    series_id: str | None
    """None for slices in quarantine that name no series."""
    slices: int
    """Segmented ones."""
    different: int
    """Slice indices of segmented ones, each once."""
    first: int | None
    last: int | None
    """The least and the greatest slice index of all; None where none is known."""
    indices: int
    """Slice indices of all, each once."""
    with_index: int
    without_index: int
    """Slices whose index is known, or not."""
    first_tissue: int | None
    last_tissue: int | None
    """The least and the greatest slice index of those that are not blank."""
    slices_with_tumor: int
    tumor_voxels: int
    probability_sum: float
    probability_in_mask: float
    files: tuple[int, ...]
    """Numbers of the mask files that hold its slices, in order."""
    several_sizes: bool
    """Whether its slices differ in height or width."""
    spacing: Spacing
    """The greatest of each length."""
    spacing_varies: bool
    """Whether a length differs from slice to slice, or only some slices have it."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From a row of `count_series`."""
        plain = {f.name: row[f.name] for f in fields(cls) if f.name in row}
        # A sum over no slices is null.
        sums = ("slices_with_tumor", "tumor_voxels", "probability_sum", "probability_in_mask")
        return cls(
            **plain
            | {name: row[name] or 0 for name in sums}
            | {
                "files": tuple(sorted(row["files"])),
                "several_sizes": row["heights"] > 1 or row["widths"] > 1,
                "spacing": Spacing.from_row(row),
                "spacing_varies": any(
                    row[f"{name}_count"] > 1 or 0 < row[f"{name}_known"] < row["slices"]
                    for name in SPACING_COLUMNS
                ),
            }
        )


def read_slices(folder: str, names: list[str]) -> Iterator[pa.RecordBatch]:
    """`SLICES` of all mask files of a folder, in their order, read ahead by several threads."""
    progress = Progress(len(names), "mask files counted")

    def read(number: int) -> pa.Table:
        columns = [*_READ, "mean_probability"]
        table = run_folder.read_table(store.join(folder, names[number]), columns)
        in_mask = pc.multiply(
            pc.fill_null(table["mean_probability"], 0).cast(pa.float64()), table["tumor_pixels"]
        )
        file = pa.repeat(pa.scalar(number, pa.int32()), table.num_rows)
        index, tumor = table["slice_index"], pc.greater(table["tumor_pixels"], 0).cast(pa.int32())
        return pa.table(
            [*table.select(_READ).columns, in_mask, file, tumor, index, index], schema=SLICES
        )

    with ThreadPoolExecutor(READ_THREADS) as pool:
        for start in range(0, len(names), FILES_AT_ONCE):
            for table in pool.map(read, range(start, min(start + FILES_AT_ONCE, len(names)))):
                yield from table.to_batches()
                progress.advance(1)


def count_series(slices: Iterable[pa.RecordBatch], quarantined: pa.Table) -> pa.Table:
    """One row a series, sorted: `KEYS` and `COUNTS`.

    Args:
        slices: `SLICES` of segmented ones, in any order. A series may lie in several batches.
        quarantined: `LOST`; rows without a patient are left out. The series may be null.
    """
    rows = quarantined.filter(pc.is_valid(quarantined["patient_id"])).combine_chunks()
    index = rows["slice_index"]
    blank = pc.equal(rows["stage"], schema.BLANK)
    columns = {
        **{key: rows[key] for key in KEYS},
        "any_index": index,
        "tissue_index": pc.if_else(blank, pa.scalar(None, pa.int32()), index),
    }
    lost = pa.table(
        [columns.get(f.name, pa.nulls(rows.num_rows, f.type)) for f in SLICES], schema=SLICES
    )
    reader = pa.RecordBatchReader.from_batches(SLICES, itertools.chain(lost.to_batches(), slices))
    aggregates = [(*how, name) for name, how in COUNTS.items()]
    plan = acero.Declaration.from_sequence(
        [
            acero.Declaration(
                "record_batch_reader_source", acero.RecordBatchReaderSourceNodeOptions(reader)
            ),
            acero.Declaration("aggregate", acero.AggregateNodeOptions(aggregates, keys=KEYS)),
        ]
    )
    return plan.to_table().sort_by([(key, "ascending") for key in KEYS])


def blank_indices(quarantined: pa.Table) -> dict[tuple[str | None, str | None], set[int]]:
    """Indices of the blank slices of each patient's series, from `LOST`."""
    blank = quarantined.filter(pc.equal(quarantined["stage"], schema.BLANK)).select(
        [*KEYS, "slice_index"]
    )
    table = blank.group_by(KEYS).aggregate([("slice_index", "distinct")])
    lists = zip(
        *(table[key].to_pylist() for key in KEYS),
        table["slice_index_distinct"].to_pylist(),
        strict=True,
    )
    return {(patient, series): set(indices) for patient, series, indices in lists}


def slices_missing(count: SeriesCounts, blank: Set[int], without_patient: int) -> tuple[int, int]:
    """Count the missing slices of one series, and those of which nothing is known.

    Missing are slices in quarantine, and numbers between the first and the last slice that no slice
    has. A slice of unknown number is taken for one of these numbers before it counts on its own.
    Blank slices at either end hold no tissue, and nothing of the volume: they do not count, up to
    the first one that is not blank or not there.

    Args:
        count: of the series.
        blank: indices of its blank slices.
        without_patient: slices of this series in quarantine that `count` does not know.
    """
    first, last = count.first, count.last
    unknown = count.without_index + without_patient
    if first is None or last is None:
        return unknown, 0
    blank_ends = 0
    if count.first_tissue is not None and count.last_tissue is not None and count.slices:
        tissue = (
            min(first + _unbroken(blank, first, 1), count.first_tissue),
            max(last - _unbroken(blank, last, -1), count.last_tissue),
        )
        blank_ends = tissue[0] - first + last - tissue[1]
        first, last = tissue
    quarantined = count.indices - blank_ends - count.different
    absent = last - first + 1 - count.different - quarantined
    return quarantined + max(absent, unknown), max(absent - unknown, 0)


def _unbroken(indices: Set[int], start: int, step: int) -> int:
    """How many of `start`, `start + step`, … are there one after the other."""
    return next(n for n in itertools.count() if start + n * step not in indices)
