"""Shape and postprocessing of a few series at a time: mask files in, a small row a series out.

Runs in Ray's workers as well.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segmodel.analysis import tumor_shape
from segmodel.analysis.tumor_shape import Mask, Postprocessing
from segmodel.core import schema
from segmodel.core.mask_png import decode_mask, encode_mask
from segmodel.runs import run_folder
from segmodel.storage import store

CHUNK_FILES = 8
"""Mask files a chunk: few series cross from one chunk into the next, and a task takes a second."""

SHAPES = pa.schema(
    [
        pa.field("patient_id", pa.string()),
        pa.field("series_id", pa.string()),
        pa.field("tumor_voxels", pa.int64()),
        pa.field("slices_with_tumor", pa.int64()),
        pa.field("largest_component_voxels", pa.int64()),
        pa.field("touches_border", pa.bool_()),
        pa.field("jumps", pa.list_(pa.int32())),
    ]
)
"""One row a series: its keys and the fields of `shapes.Shape`, of the final masks."""


@dataclass(frozen=True)
class Series:
    """A series with tumor, its slices all of one size."""

    patient_id: str
    series_id: str | None
    files: list[str]
    """Names of the mask files that hold its slices."""
    postprocess: bool
    voxel_mm3: float | None


@dataclass(frozen=True)
class Chunk:
    """Series whose mask files are read together."""

    name: str
    series: list[Series]

    @property
    def files(self) -> list[str]:
        """Each file once, sorted."""
        return sorted({name for one in self.series for name in one.files})

    def to_json(self) -> str:
        """As text: what Ray Data carries without making arrays of it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The chunk of `to_json`."""
        values = json.loads(text)
        return cls(values["name"], [Series(**one) for one in values["series"]])


def plan(series: Iterable[Series]) -> list[Chunk]:
    """Group series with neighbouring files, so that each file is read about once.

    The plan is the same every time.
    """
    groups: list[list[Series]] = []
    files: set[str] = set()
    for one in sorted(series, key=lambda one: (one.files, one.patient_id, one.series_id)):
        if not groups or len(files | set(one.files)) > CHUNK_FILES:
            groups.append([])
            files = set()
        groups[-1].append(one)
        files.update(one.files)
    return [Chunk(f"series-{number:05d}", group) for number, group in enumerate(groups)]


def read_chunk(chunk: Chunk, output: str) -> pa.Table:
    """The rows of a chunk's series: `schema.MASKS` and `number`, the series' place in the chunk.

    Sorted by `number` and slice index.

    Args:
        chunk: what to read.
        output: the run folder.
    """
    wanted = _key([one.patient_id for one in chunk.series], [one.series_id for one in chunk.series])
    tables = []
    for name in chunk.files:
        table = run_folder.read_table(store.join(output, "masks", name), schema.MASKS.names)
        number = pc.index_in(_key(table["patient_id"], table["series_id"]), wanted)
        tables.append(table.append_column("number", number).filter(pc.is_valid(number)))
    return pa.concat_tables(tables).sort_by([("number", "ascending"), ("slice_index", "ascending")])


def measure_chunk(
    chunk: Chunk, rows: pa.Table, output: str, how: Postprocessing | None
) -> pa.Table:
    """Measure each series of a chunk, after postprocessing where it is wanted.

    All rows of each series that postprocessing changed are published, as
    postprocessed/<chunk>.parquet.

    Args:
        chunk: what to measure.
        rows: from `read_chunk`.
        output: the run folder.
        how: what postprocessing takes out of the series that ask for it.

    Returns:
        `SHAPES`, in the chunk's order.
    """
    bounds = np.searchsorted(rows["number"].to_numpy(), np.arange(len(chunk.series) + 1)).tolist()
    rows = rows.select(schema.MASKS.names)
    measured, changed = [], []
    for one, start, stop in zip(chunk.series, bounds[:-1], bounds[1:], strict=True):
        slices = rows.slice(start, stop - start)
        masks = _masks(slices)
        if how is not None and one.postprocess:
            kept = tumor_shape.postprocess(masks, how, one.voxel_mm3)
            altered = {index: mask for index, mask in kept.items() if (mask != masks[index]).any()}
            if altered:
                changed.append(_altered_rows(slices, altered))
            masks = kept
        shape = tumor_shape.measure(masks, slices["slice_index"].to_pylist())
        measured.append({"patient_id": one.patient_id, "series_id": one.series_id, **asdict(shape)})
    if changed:
        store.publish_table(
            store.join(output, "postprocessed", f"{chunk.name}.parquet"), pa.concat_tables(changed)
        )
    return pa.Table.from_pylist(measured, schema=SHAPES)


def measure_batch(batch: pa.Table, output: str, how: Postprocessing | None) -> pa.Table:
    """`read_chunk` and `measure_chunk` for Ray Data.

    The batch has one row, whose `chunk` is the text of a chunk.
    """
    chunk = Chunk.from_json(batch["chunk"][0].as_py())
    return measure_chunk(chunk, read_chunk(chunk, output), output, how)


def _key(patients: Any, series: Any) -> pa.Array | pa.ChunkedArray:
    as_column = [
        pa.array(values, pa.string()) if isinstance(values, list) else values
        for values in (patients, series)
    ]
    # The length tells where the patient ends and the series begins, whatever an id holds.
    lengths = pc.cast(pc.binary_length(as_column[0]), pa.string())
    return pc.binary_join_element_wise(lengths, *as_column, ":")


def _masks(rows: pa.Table) -> dict[int, Mask]:
    """The masks with tumor, by slice index; slices with the same index are united."""
    masks: dict[int, Mask] = {}
    tumor = rows.select(["slice_index", "mask"]).filter(pc.greater(rows["tumor_pixels"], 0))
    for index, png in zip(tumor["slice_index"].to_pylist(), tumor["mask"].to_pylist(), strict=True):
        mask = decode_mask(png)
        masks[index] = masks[index] | mask if index in masks else mask
    return masks


def _altered_rows(rows: pa.Table, altered: dict[int, Mask]) -> pa.Table:
    """All rows of a series, with some masks replaced.

    The mean probability of a replaced mask is not known.
    """
    new = []
    for row in rows.to_pylist():
        mask = altered.get(row["slice_index"])
        if mask is not None:
            row |= {
                "mask": encode_mask(mask),
                "tumor_pixels": int(mask.sum()),
                "mean_probability": None,
            }
        new.append(row)
    return pa.Table.from_pylist(new, schema=schema.MASKS)
