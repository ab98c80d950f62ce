"""An archive and a finished segmentation with known masks, made in this process without Ray."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segmodel.analysis import volumes
from segmodel.analysis.tumor_shape import Postprocessing
from segmodel.archive import manifest
from segmodel.archive.manifest import ArchiveInfo
from segmodel.archive.reader import Archive
from segmodel.archive.update import ArchiveUpdate
from segmodel.core import schema
from segmodel.core.mask_png import encode_mask
from segmodel.ingestion import portion as portions
from segmodel.ingestion.portion import Portion, Target
from segmodel.runs import run_file, run_folder
from segmodel.sources.base import Source
from segmodel.storage import folder_lock
from tests.support.segmented import new_run

SHARD_SLICES = 64


def ingest(folder: Path, source: Source) -> Path:
    """What jobs.ingest writes, all patients in one file."""
    info = ArchiveInfo(
        format_version=schema.FORMAT_VERSION,
        archive_id=manifest.new_archive_id(),
        source=source.name,
        channels=source.channels,
        intensity_scaling=source.intensity_scaling,
        patients=0,
        slices=0,
        annotated_slices=0,
        rejects=0,
        files={},
        reject_files={},
    )
    update = ArchiveUpdate(str(folder), info, overwrite=False, add=False)
    patients = tuple(source.patients())
    with folder_lock.acquire_lock(str(folder)) as lease:
        update.begin()
        target = Target(str(folder), update.ingest, len(source.channels), lease.for_workers())
        report = portions.process(source, Portion("00000", patients), {}, target)
        update.commit(
            report.files,
            portions.to_table(report.rejects, schema.REJECTS),
            portions.to_table(report.choices, schema.SERIES_CHOICES),
            report.added,
        )
    return folder


def true_mask(row: dict[str, Any]) -> np.ndarray:
    """What the archive says: nothing where nobody annotated."""
    shape = (row["height"], row["width"])
    return np.zeros(shape, bool) if row["mask"] is None else _image(row["mask"], shape)


def _image(content: bytes, shape: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(content, np.uint8).reshape(shape) > 0


def write(
    archive: Path | str,
    run: Path,
    mask_of: Callable[[dict[str, Any]], np.ndarray] = true_mask,
    *,
    lost: Collection[str] = (),
    blank: Collection[str] = (),
    how: Postprocessing | None = None,
) -> Path:
    """A run without an error.

    Args:
        archive: that was segmented.
        run: folder to write.
        mask_of: the mask of a slice, a row of the archive.
        lost: ids of slices that are in quarantine.
        blank: those whose pixels are said to be all equal.
        how: the postprocessing.
    """
    opened = Archive(str(archive))
    for name in (run_folder.MASKS, run_folder.QUARANTINE):
        (run / name).mkdir(parents=True)
    for shard in opened.shards(SHARD_SLICES):
        with pq.ParquetFile(Path(archive) / shard.file) as file:
            groups = range(shard.first_row_group, shard.stop_row_group)
            slices = file.read_row_groups(list(groups)).to_pylist()
        found = [
            _mask_row(row, mask_of(row)) for row in slices if row["slice_id"] not in {*lost, *blank}
        ]
        table = pa.Table.from_pylist(found, schema=schema.MASKS)
        pq.write_table(table, run / run_folder.MASKS / shard.output_file)
        stages = {**dict.fromkeys(lost, "read"), **dict.fromkeys(blank, schema.BLANK)}
        rows = [
            {**row, "stage": stages[row["slice_id"]], "reason": "?"}
            for row in slices
            if row["slice_id"] in stages
        ]
        if rows:
            table = pa.Table.from_pylist(rows, schema=schema.QUARANTINE)
            pq.write_table(table, run / run_folder.QUARANTINE / shard.output_file)
    begun = new_run(archive_id=opened.info.archive_id, code_version="0.0", weights_sha256="ab" * 32)
    run_file.write(str(run), replace(begun, finished="now"))
    volumes.summarise(str(run), lambda _: "no", how)
    return run


def _mask_row(row: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    tumor = int(mask.sum())
    measured = {"tumor_pixels": tumor, "mean_probability": None, "probability_sum": float(tumor)}
    return {**row, "mask": encode_mask(mask), **measured}
