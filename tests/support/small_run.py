"""An archive and a finished run of a few patients with squares of tumor, for reports."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from segmodel.analysis import volumes
from segmodel.analysis.tumor_shape import Postprocessing
from segmodel.archive.reader import Archive
from segmodel.core import schema
from segmodel.core.geometry import Spacing
from segmodel.core.mask_png import encode_mask
from segmodel.runs import run_file
from segmodel.runs.run_file import Counts, Run
from segmodel.sources.base import slice_row
from segmodel.storage import store
from tests.support import scans
from tests.support.segmented import new_run

SIZE, SLICES = 32, 5
SPACING = Spacing(slice_mm=5.0, row_mm=4.0, column_mm=4.0)


def square(size: int, first: int = 4) -> np.ndarray:
    """A square of tumor in a slice; a truth begins at (4, 4), a prediction may be moved."""
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[first : first + size, first : first + size] = True
    return mask


def archive_slices(patient: str, *, annotated: bool = True) -> pa.Table:
    """Slice n has a true square of n pixels a side."""
    rows = [
        slice_row(
            slice_id=f"{patient}_{index}",
            patient_id=patient,
            slice_index=index,
            pixels_hwc=np.full((SIZE, SIZE, 3), 20 * index, dtype=np.uint8),
            mask_hw=square(index) if annotated else None,
            spacing=SPACING,
            source_uri="",
        )
        for index in range(1, SLICES + 1)
    ]
    return pa.Table.from_pylist(rows, schema=schema.ARCHIVE)


def write_small_run(
    folder: Path,
    patients: list[str],
    *,
    annotated: bool = True,
    lost: tuple[tuple[str, str], ...] = (),
    how: Postprocessing | None = None,
) -> str:
    """Write folder/archive and folder/run; predictions are the truth, one pixel down and right.

    Args:
        folder: that both lie in.
        patients: their ids, sorted.
        annotated: whether the archive has the truth.
        lost: stage and reason of further slices in quarantine, of the first patient.
        how: postprocessing.
    """
    scans.write(folder / "archive", *(archive_slices(one, annotated=annotated) for one in patients))
    archive, run = Archive(str(folder / "archive")), str(folder / "run")
    for shard in archive.shards(512):
        table = archive_columns(archive, shard.file)
        rows = [mask_row(row) for row in table.to_pylist()]
        store.publish_table(
            store.join(run, "masks", shard.output_file), pa.Table.from_pylist(rows, schema.MASKS)
        )
    if lost:
        rows = [
            {
                "slice_id": f"x{number}",
                "patient_id": patients[0],
                "series_id": patients[0],
                "slice_index": SLICES + 1 + number,
                "stage": stage,
                "reason": reason,
            }
            for number, (stage, reason) in enumerate(lost)
        ]
        table = pa.Table.from_pylist(rows, schema=schema.QUARANTINE)
        store.publish_table(
            store.join(run, "quarantine", archive.shards(512)[0].output_file), table
        )
    volumes.summarise(run, {patients[0]: "train"}.get, how)
    run_file.write(run, finished(archive, folder, len(patients), len(lost)))
    return run


def archive_columns(archive: Archive, file: str) -> pa.Table:
    with store.open_parquet(store.join(archive.uri, file)) as opened:
        return opened.read(columns=schema.INDEX_COLUMNS)


def mask_row(row: dict) -> dict:
    size = row["slice_index"]
    return {
        **row,
        "mask": encode_mask(square(size, first=5)),
        "tumor_pixels": size * size,
        "mean_probability": 0.5,
        "probability_sum": float(size * size),
    }


def finished(archive: Archive, folder: Path, patients: int, lost: int) -> Run:
    slices = archive.info.slices + lost
    counts = Counts(
        slices=slices,
        segmented=slices - lost,
        quarantined=lost,
        blank=0,
        patients=patients,
        shards=1,
    )
    settings = {
        "archive": str(folder / "archive"),
        "checkpoint": str(folder / "no-model"),
        "max_quarantined": 0.1,
    }
    return replace(
        new_run(archive_id=archive.info.archive_id),
        settings=settings,
        counts=counts,
        slices_per_second=12.5,
        finished="2026-01-02T21:30:00+00:00",
    )
