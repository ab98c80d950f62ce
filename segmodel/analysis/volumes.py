"""Tumor volumes of a run and what to look at first, computed from its published masks alone."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import pyarrow as pa
import ray.data

from segmodel.analysis import series_counts, series_shapes, series_volume
from segmodel.analysis.series_shapes import Chunk, Series
from segmodel.analysis.studies import Studies
from segmodel.analysis.tumor_shape import Postprocessing
from segmodel.analysis.volume_tables import Tables, tables
from segmodel.core import schema
from segmodel.core.progress import Progress
from segmodel.runs import run_folder
from segmodel.runtime import ray_cluster
from segmodel.storage import csv_files, store

THREADS = 8
RAY_FILES = 256
"""Mask files from which on Ray Data is worth the seconds that it takes to start."""


def summarise(
    output: str,
    seen_in_training: Callable[[str], str | None],
    postprocessing: Postprocessing | None = None,
    studies: Studies | None = None,
) -> pa.Table:
    """Write the tables of changes, series and volumes of the run in `output`, volumes.csv last.

    Shapes are measured on Ray if it is connected and the run has `RAY_FILES` mask files, otherwise
    here.

    Args:
        output: the run folder.
        seen_in_training: of a patient: train, validation, no or, where that is unknown, None.
        postprocessing: what is taken out of the masks before they are counted. The masks of series
            that it changes go to postprocessed/.
        studies: of the series, where they are known.

    Returns:
        `schema.VOLUMES`, sorted by patient.
    """
    masks = store.join(output, "masks")
    names = store.list_files(masks, ".parquet")
    quarantined = _read_quarantine(store.join(output, "quarantine"))
    slices = series_counts.read_slices(masks, names)
    series = series_volume.count(series_counts.count_series(slices, quarantined), quarantined)
    store.remove(store.join(output, "postprocessed"))  # of an earlier summary
    treatments = [series_volume.decide_treatment(one, postprocessing) for one in series]
    chunks = series_shapes.plan(
        Series(*one.key, [names[n] for n in one.counts.files], treatment.postprocess, one.voxel_mm3)
        for one, treatment in zip(series, treatments, strict=True)
        if one.can_be_measured
    )
    on_ray = ray.is_initialized() and len(names) >= RAY_FILES
    shapes = _measure(chunks, output, postprocessing, on_ray)
    measured = series_volume.with_shapes(series, treatments, shapes)
    found = tables(measured, seen_in_training, studies)
    _publish(output, found)
    return found.volumes


def _publish(output: str, found: Tables) -> None:
    named = {"changes": found.changes, "series": found.series, "volumes": found.volumes}
    for name, table in named.items():  # volumes last: with them a run is finished
        store.publish_table(store.join(output, f"{name}.parquet"), table)
        csv_files.publish_csv_table(store.join(output, f"{name}.csv"), table)


def _measure(
    chunks: list[Chunk], output: str, how: Postprocessing | None, on_ray: bool
) -> pa.Table:
    """`series_shapes.SHAPES` of all chunks."""
    progress = Progress(sum(len(chunk.series) for chunk in chunks), "series measured")
    measured = [series_shapes.SHAPES.empty_table()]
    if on_ray and chunks:
        ray_cluster.configure_ray_data()
        texts = [{"chunk": chunk.to_json()} for chunk in chunks]
        dataset = ray.data.from_items(texts, override_num_blocks=len(texts)).map_batches(
            partial(series_shapes.measure_batch, output=output, how=how),
            batch_size=1,
            batch_format="pyarrow",
        )
        for table in cast(
            Iterable[Any], dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        ):
            measured.append(table.cast(series_shapes.SHAPES))
            progress.advance(table.num_rows)
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(
                0, len(chunks), THREADS
            ):  # no more is read ahead: a chunk may be large
                some = chunks[start : start + THREADS]
                read = pool.map(partial(series_shapes.read_chunk, output=output), some)
                for chunk, rows in zip(
                    some, read, strict=True
                ):  # measured in one thread: several only wait for each other
                    measured.append(series_shapes.measure_chunk(chunk, rows, output, how))
                    progress.advance(len(chunk.series))
    return pa.concat_tables(measured)


def _read_quarantine(folder: str) -> pa.Table:
    def read(name: str) -> pa.Table:
        return run_folder.read_table(store.join(folder, name), series_counts.LOST)

    with ThreadPoolExecutor(THREADS) as pool:
        empty = schema.QUARANTINE.empty_table().select(series_counts.LOST)
        return pa.concat_tables([empty, *pool.map(read, store.list_files(folder, ".parquet"))])
