"""Large archives, made fast."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from segmodel.core import schema
from segmodel.ingestion.driver import ingest
from segmodel.settings.ingest import IngestConfig
from tests.benchmarks.by_hand import SHARD
from tests.support import archive_writer, scans, standin

FILE_SHARDS = 8
"""Shards in a file of `write_planned_archive`."""


def tiled(
    folder: Path, slices: int, size: int, patients: int = 4, patient_slices: int = 160
) -> str:
    """An archive of a few phantoms, repeated under new names."""
    few = folder.parent / f"phantoms-{size}-{patient_slices}"
    if not few.exists():
        ingest(
            IngestConfig(
                archive=str(few),
                format="phantom",
                phantom_patients=patients,
                phantom_slices=patient_slices,
                phantom_size=size,
                tracking="none",
            )
        )
    table = pq.read_table(scans.files(few)[0])
    with archive_writer.ArchiveWriter(
        str(folder),
        source="benchmark",
        channels=standin.CHANNELS,
        intensity_scaling="none",
        overwrite=False,
    ) as writer:
        for number in range(-(-slices // patient_slices)):
            patient = f"P{number:06d}"
            count = min(patient_slices, slices - number * patient_slices)
            rows = table.slice(number % patients * patient_slices, count)
            for column, values in (
                ("slice_id", [f"{patient}_{index}" for index in range(count)]),
                ("patient_id", [patient] * count),
                ("series_id", [patient] * count),
            ):
                rows = rows.set_column(
                    rows.schema.get_field_index(column), rows.schema.field(column), pa.array(values)
                )
            writer.append(rows, schema.REJECTS.empty_table())
        writer.close()
    return str(folder)


def write_planned_archive(archive: Path, shards: int) -> Path:
    """Write an archive without pixels, for planning only: its files are links to one."""
    rows = FILE_SHARDS * SHARD
    light = {
        name: pa.array([""] * rows)
        if pa.types.is_string(field.type)
        else pa.nulls(rows, field.type)
        for name, field in ((field.name, field) for field in schema.ARCHIVE)
    }
    archive.mkdir()
    pq.write_table(pa.table(light), archive / "part-00000.parquet", row_group_size=64)
    files = shards // FILE_SHARDS
    for number in range(1, files):
        os.link(archive / "part-00000.parquet", archive / f"part-{number:05d}.parquet")
    info = {
        "format_version": schema.FORMAT_VERSION,
        "archive_id": "planned",
        "source": "benchmark",
        "channels": list(standin.CHANNELS),
        "intensity_scaling": "none",
        "patients": 1,
        "slices": files * rows,
        "annotated_slices": 0,
        "rejects": 0,
        "files": {f"part-{number:05d}.parquet": rows for number in range(files)},
    }
    (archive / "archive.json").write_text(json.dumps(info))
    return archive
