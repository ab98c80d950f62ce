"""One shard as a segmentation takes it: the slices that can be used, and the others with the reason why not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segmodel import salvage, schema, storage
from segmodel.archive import Shard, check_slices
from segmodel.salvage import DamagedFileError

_COLUMNS = [name for name in schema.ARCHIVE.names if name not in ("mask", "source_uri")]
"""All that a segmentation needs: a damaged annotation does not stop it."""
_KEYS = ["slice_id", "patient_id", "series_id", "slice_index"]


def read_shard(uri: str, shard: Shard, channels: int) -> tuple[pa.Table, pa.Table]:
    """Read one shard of the archive `uri`.

    Stages of what cannot be used: `open`, the file cannot be opened; `read`, the slice's row group cannot be decoded; `check`,
    the slice's ids, shape or bytes are wrong; `blank`, all its pixels are equal.

    Args:
        uri: of the archive.
        shard: of that archive.
        channels: of its slices.

    Returns:
        `schema.ARCHIVE` without mask and source_uri, slices in their order; and `schema.QUARANTINE`.

    Raises:
        OSError: the store does not give the bytes, which says nothing about them.
    """
    path = storage.join(uri, shard.file)
    groups = range(shard.first_row_group, shard.stop_row_group)
    try:
        table, unreadable = salvage.read_groups(path, groups, _COLUMNS)
        lost = unreadable_rows(path, unreadable, "read") if unreadable else []
    except DamagedFileError as error:
        table, lost = schema.ARCHIVE.empty_table().select(_COLUMNS), lost_rows(shard.slices, str(error))
    wrong = {problem.row: problem.reason for problem in check_slices(table, channels)}
    blank = {row: "all its pixels are equal" for row in _constant(table, channels) if row not in wrong}
    unusable = [
        quarantined(table.take(pa.array(reasons, pa.int64())), stage, list(reasons.values()))
        for stage, reasons in (("check", wrong), (schema.BLANK, blank))
    ]
    if wrong or blank:
        table = table.filter(pa.array([row not in wrong and row not in blank for row in range(table.num_rows)]))
    return table, pa.concat_tables([pa.Table.from_pylist(lost, schema=schema.QUARANTINE), *unusable])


def quarantined(slices: pa.Table, stage: str, reasons: list[str]) -> pa.Table:
    """`schema.QUARANTINE` for slices whose ids are known."""
    columns = [slices[name] for name in _KEYS]
    return pa.table([*columns, pa.array([stage] * len(slices), pa.string()), pa.array(reasons, pa.string())], schema.QUARANTINE)


def lost_rows(slices: int, reason: str) -> list[dict[str, Any]]:
    """Rows of `schema.QUARANTINE` for slices of a file that cannot be opened: their ids are not known."""
    return [{**dict.fromkeys(_KEYS), "stage": "open", "reason": reason}] * slices


def _constant(table: pa.Table, channels: int) -> list[int]:
    """Rows whose pixels are all equal, channel by channel."""
    rows = []
    for row, pixels in enumerate(table["pixels"]):
        flat = np.frombuffer(pixels.as_buffer() or b"", dtype=np.uint8)
        pixels_nc = flat[: len(flat) // channels * channels].reshape(-1, channels)
        # A few pixels clear nearly every slice; the corners would not, since they are black.
        if len(pixels_nc) and (pixels_nc[::97] == pixels_nc[0]).all() and (pixels_nc == pixels_nc[0]).all():
            rows.append(row)
    return rows


def unreadable_rows(path: str, reasons: dict[int, str], stage: str) -> list[dict[str, Any]]:
    """A row of `schema.QUARANTINE` for each slice of some row groups, with its ids where these can be read."""
    rows = []
    with salvage.in_memory(path) as file:
        for group, reason in reasons.items():
            reason = f"{path}: row group {group} {reason}; ingest its patients again"
            keys, failed = salvage.read_groups_of(file, [group], _KEYS)
            found: Sequence[dict[str, Any]] = _outermost(file, group) if failed else keys.to_pylist()
            rows += [{**key, "stage": stage, "reason": reason} for key in found]
    return rows


def _outermost(file: pq.ParquetFile, group: int) -> list[dict[str, Any]]:
    """Keys of a row group whose ids are damaged too: only the patients of its first and its last slice are known.

    They are the least and the greatest, which the footer holds, since slices are sorted by patient. Any patient between the two
    has all slices here; those two may have others elsewhere, and their volume must not pass for whole.
    """
    metadata = file.metadata.row_group(group)
    rows: list[dict[str, Any]] = [dict.fromkeys(_KEYS) for _ in range(metadata.num_rows)]
    statistics = metadata.column(schema.ARCHIVE.get_field_index("patient_id")).statistics
    if rows and statistics is not None and statistics.has_min_max:
        rows[-1]["patient_id"], rows[0]["patient_id"] = statistics.max, statistics.min
        if statistics.min == statistics.max:
            rows = [{**row, "patient_id": statistics.min} for row in rows]
    return rows
