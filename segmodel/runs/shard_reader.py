"""Reads a shard for a segmentation: the usable slices, and the others with the reason why not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from segmodel.archive.reader import Shard, row_groups
from segmodel.archive.slice_format import check_slices
from segmodel.core import schema
from segmodel.storage import parquet_recovery, store
from segmodel.storage.parquet_recovery import DamagedFileError

_COLUMNS = [name for name in schema.ARCHIVE.names if name in (*schema.INDEX_COLUMNS, "pixels")]
"""All that a segmentation needs: a damaged annotation does not stop it."""
_KEYS = ["slice_id", "patient_id", "series_id", "slice_index"]


def read_usable_slices(uri: str, shard: Shard, channels: int) -> tuple[pa.Table, pa.Table]:
    """Read one shard of the archive `uri`.

    Stages of slices that cannot be used: `open`, the file cannot be opened; `read`, the row group
    cannot be decoded; `check`, the slice's ids, shape or bytes are wrong; `blank`, all its pixels
    are equal.

    Args:
        uri: of the archive.
        shard: of that archive.
        channels: of its slices.

    Returns:
        The columns of `schema.ARCHIVE` that a segmentation needs, of the usable slices in their
        order; and `schema.QUARANTINE` of the others.

    Raises:
        OSError: the store does not give the bytes, which says nothing about them.
    """
    table, lost = _read_slices(store.join(uri, shard.file), shard)
    wrong = {problem.row: problem.reason for problem in check_slices(table, channels)}
    blank = {
        row: "all its pixels are equal" for row in _constant(table, channels) if row not in wrong
    }
    unusable = [
        quarantine_rows(table, list(reasons), stage, list(reasons.values()))
        for stage, reasons in (("check", wrong), (schema.BLANK, blank))
    ]
    if wrong or blank:
        usable = [row not in wrong and row not in blank for row in range(table.num_rows)]
        table = table.filter(pa.array(usable))
    return table, pa.concat_tables([lost, *unusable])


def _read_slices(path: str, shard: Shard) -> tuple[pa.Table, pa.Table]:
    """The slices that can be read, and quarantine for the others."""
    groups = range(shard.first_row_group, shard.stop_row_group)
    try:
        table, unreadable = parquet_recovery.read_row_groups(path, groups, _COLUMNS)
        lost = schema.QUARANTINE.empty_table()
        if unreadable:
            lost = unreadable_rows(path, unreadable, "read")
        if table.num_rows + lost.num_rows != shard.slices:
            raise DamagedFileError(
                f"{path}: has other slices than when the run began; ingest again"
            )
    except DamagedFileError as error:
        return schema.ARCHIVE.empty_table().select(_COLUMNS), quarantine_shard(shard, str(error))
    return table, lost


def quarantine_rows(
    slices: pa.Table, rows: Sequence[int], stage: str, reasons: list[str]
) -> pa.Table:
    """`schema.QUARANTINE` for some rows of slices whose ids are known, a reason each."""
    keys = slices.select(_KEYS).take(pa.array(rows, pa.int64()))
    return pa.table(
        [*keys.columns, pa.array([stage] * len(keys), pa.string()), pa.array(reasons, pa.string())],
        schema.QUARANTINE,
    )


def quarantine_shard(shard: Shard, reason: str) -> pa.Table:
    """`schema.QUARANTINE` for all slices of a shard whose file broke while a run was at it."""
    keys = _outermost(shard.slices, shard.first_patient, shard.last_patient)
    return _quarantine(keys, "open", reason)


def quarantine_file(slices: int, reason: str) -> pa.Table:
    """`schema.QUARANTINE` for all slices of a file that cannot be opened; their ids are unknown."""
    return _quarantine(_outermost(slices, None, None), "open", reason)


def _constant(table: pa.Table, channels: int) -> list[int]:
    """Rows whose pixels are all equal, channel by channel."""
    rows = []
    for row, pixels in enumerate(table["pixels"]):
        flat = np.frombuffer(pixels.as_buffer() or b"", dtype=np.uint8)
        pixels_nc = flat[: len(flat) // channels * channels].reshape(-1, channels)
        # A few pixels clear nearly every slice; the corners would not, since they are black.
        if (
            len(pixels_nc)
            and (pixels_nc[::97] == pixels_nc[0]).all()
            and (pixels_nc == pixels_nc[0]).all()
        ):
            rows.append(row)
    return rows


def unreadable_rows(
    path: str, reasons: dict[int, str], stage: str, *, read_ids: bool = True
) -> pa.Table:
    """`schema.QUARANTINE` for all slices of some row groups, with the ids that can be read.

    Args:
        path: of the file.
        reasons: why each of them cannot be used.
        stage: of all.
        read_ids: otherwise only the patients in the file's footer are named.

    Raises:
        DamagedFileError: the file cannot be opened.
        OSError: the store does not give the bytes.
    """
    tables = [schema.QUARANTINE.empty_table()]
    with parquet_recovery.reopen(path) as file:
        for group, reason in reasons.items():
            keys, failed = parquet_recovery.read_row_groups_of(
                file, [group] if read_ids else [], _KEYS
            )
            (known,) = row_groups(file, [group])
            complete = read_ids and not failed
            found = (
                keys.to_pylist()
                if complete
                else _outermost(known.slices, known.first_patient, known.last_patient)
            )
            tables.append(
                _quarantine(
                    found, stage, f"{path}: row group {group} {reason}; ingest its patients again"
                )
            )
    return pa.concat_tables(tables)


def _outermost(
    slices: int, first_patient: str | None, last_patient: str | None
) -> list[dict[str, Any]]:
    """Keys of consecutive slices whose ids are lost. Only the first and the last patient are known.

    These two may have other slices elsewhere, and their volume must not pass for whole. Any patient
    between them has all slices here.
    """
    rows: list[dict[str, Any]] = [dict.fromkeys(_KEYS) for _ in range(slices)]
    for row in rows if first_patient == last_patient else rows[:1]:
        row["patient_id"] = first_patient
    for row in rows[-1:]:
        row["patient_id"] = last_patient
    return rows


def _quarantine(keys: list[dict[str, Any]], stage: str, reason: str) -> pa.Table:
    return pa.Table.from_pylist(
        [{**each, "stage": stage, "reason": reason} for each in keys], schema=schema.QUARANTINE
    )
