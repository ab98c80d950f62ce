"""Rows of a run's mask and quarantine files, and whole run folders, as a test wants them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segmodel.archive.reader import Archive
from segmodel.archive.slice_file import ROW_GROUP_SLICES
from segmodel.core import schema
from segmodel.core.mask_png import encode_mask
from segmodel.runs import run_file
from segmodel.runs.run_file import Fingerprint, Run

WANTED = Fingerprint(
    weights_sha256="w",
    model_settings_sha256="m",
    threshold=0.5,
    precision="fp32",
    archive_id="a",
    shard_slices=512,
    test_time_augmentation=None,
    code_version="1",
    code_sha256="c",
)


def new_run(**fingerprint: Any) -> Run:
    """One that has just begun, with some parts of its fingerprint changed."""
    return Run(
        fingerprint=replace(WANTED, **fingerprint),
        settings={},
        files={},
        started="2026-01-02T20:00:00+00:00",
    )


def mask_row(
    index: int,
    voxels: int = 10,
    patient: str = "A",
    series: str = "A",
    spacing: Any = (5.0, 1.0, 2.0),
) -> dict[str, Any]:
    slice_mm, row_mm, column_mm = spacing
    return {
        "slice_id": f"{patient}_{series}_{index}",
        "patient_id": patient,
        "series_id": series,
        "slice_index": index,
        "height": 8,
        "width": 8,
        "slice_spacing_mm": slice_mm,
        "row_spacing_mm": row_mm,
        "column_spacing_mm": column_mm,
        "tumor_pixels": voxels,
        "probability_sum": float(voxels),
        "probability_in_mask": float(voxels),
        "file": 0,
        "tumor": int(voxels > 0),
        "any_index": index,
        "tissue_index": index,
    }


def quarantine_row(
    index: int | None, patient: str | None = "A", series: str | None = "A", stage: str = "read"
) -> dict[str, Any]:
    return {
        "slice_id": "x",
        "patient_id": patient,
        "series_id": series,
        "slice_index": index,
        "stage": stage,
        "reason": "?",
    }


def only(table: Any) -> dict[str, Any]:
    (row,) = table.to_pylist()
    return row


def write_masks(run: Path, archive: Path, masks: Mapping[str, np.ndarray]) -> None:
    """Publish masks, by slice id, as a run does; slices that are not named are missing."""
    columns = pa.schema([schema.MASKS.field("slice_id"), schema.MASKS.field("mask")])
    (run / "masks").mkdir(parents=True, exist_ok=True)
    for shard in Archive(str(archive)).shards(ROW_GROUP_SLICES):
        with pq.ParquetFile(archive / shard.file) as file:
            groups = list(range(shard.first_row_group, shard.stop_row_group))
            ids = file.read_row_groups(groups, columns=["slice_id"])["slice_id"].to_pylist()
        rows = [{"slice_id": key, "mask": encode_mask(masks[key])} for key in ids if key in masks]
        pq.write_table(
            pa.Table.from_pylist(rows, schema=columns), run / "masks" / shard.output_file
        )


def write_run(
    run: Path, archive: Path, masks: Mapping[str, np.ndarray], seen: Mapping[str, str | None]
) -> None:
    """A finished run with some masks, as far as jobs.evaluate reads it.

    Args:
        run: the folder.
        archive: that was segmented.
        masks: bool (rows, columns), by slice id.
        seen: of each patient `train`, `validation`, `no`, or None where the model does not say.
    """
    write_masks(run, archive, masks)
    begun = new_run(archive_id=Archive(str(archive)).info.archive_id)
    run_file.write(str(run), replace(begun, finished="2026-11-27T00:00:00+00:00"))
    fields = [schema.VOLUMES.field(name) for name in ("patient_id", "seen_in_training")]
    rows = [{"patient_id": name, "seen_in_training": value} for name, value in seen.items()]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), run / "volumes.parquet")


def truth_of(archive: Path) -> dict[str, dict[str, np.ndarray]]:
    """The annotated masks of an archive, bool (rows, columns), by patient and slice id."""
    columns = ["patient_id", "slice_id", "height", "width", "mask"]
    found: dict[str, dict[str, np.ndarray]] = {}
    for table in Archive(str(archive)).read_columns(columns):
        for row in table.to_pylist():
            mask = np.frombuffer(row["mask"], np.uint8).reshape(row["height"], row["width"]) > 0
            found.setdefault(row["patient_id"], {})[row["slice_id"]] = mask
    return found


def perturb(mask_dhw: np.ndarray, skill: float, rng: np.random.Generator) -> np.ndarray:
    """A mask as a network might predict it: a wobbling border, pieces missed or invented.

    Args:
        mask_dhw: the truth, bool.
        skill: 1 is nearly right, 0 is poor.
        rng: for the errors.
    """
    from scipy import ndimage

    noise = ndimage.gaussian_filter(rng.standard_normal(mask_dhw.shape), (0.7, 5, 5))
    noise *= (1.5 + 7 * (1 - skill)) / max(float(noise.std()), 1e-9)
    inside = ndimage.distance_transform_edt(mask_dhw, (3, 1, 1))
    outside = ndimage.distance_transform_edt(~mask_dhw, (3, 1, 1))
    predicted = np.asarray(inside - outside + noise + rng.normal(0, 2 * (1 - skill)) > 0)
    if not mask_dhw.any():
        predicted[:] = False
    if rng.random() > skill:
        middle, height, width = (size // 2 for size in mask_dhw.shape)
        predicted[middle - 1 : middle + 1, height : height + 9, width - 40 : width - 32] = True
    return predicted
