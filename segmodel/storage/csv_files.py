"""CSV files, with cells that a spreadsheet does not take for formulas."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv

from segmodel.core.rounding import rounded
from segmodel.storage import store

_FORMULA_START = "^([=+@\\-\t\r'])"
"""Starts of texts that a spreadsheet takes for formulas; a quote before them makes them text."""


def publish_csv(
    uri: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Publish rows as CSV.

    Args:
        uri: of the file.
        rows: at least one, unless `columns` are given.
        columns: the header; by default the keys of the first row.
    """
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(rows[0]) if columns is None else columns, lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({name: _escape_formula(value) for name, value in row.items()} for row in rows)
    store.publish(uri, text.getvalue().encode())


def publish_csv_table(uri: str, table: pa.Table) -> None:
    """Publish an Arrow table as CSV for people; numbers are rounded, nulls become empty cells."""
    columns = [_for_people(name, table[name]) for name in table.column_names]
    text = io.BytesIO()
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    pyarrow.csv.write_csv(pa.table(columns, names=table.column_names), text, options)
    store.publish(uri, text.getvalue())


def read_csv(uri: str) -> list[dict[str, str]]:
    """The rows of a CSV file of `publish_csv`, as texts."""
    rows = csv.DictReader(io.StringIO(store.read_bytes(uri).decode(), newline=""))
    return [{name: _unescape_formula(value) for name, value in row.items()} for row in rows]


def _escape_formula(value: object) -> object:
    if not isinstance(value, str):
        return value
    return re.sub(_FORMULA_START, r"'\1", value).replace("\r", " ")  # \r would end the row


def _for_people(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    if _is_text(column.type):
        return pa.array([_escape_formula(text) for text in column.to_pylist()], pa.large_string())
    if pa.types.is_float64(column.type):
        values = column.to_pylist()
        return pa.array([v if v is None else rounded(name, v) for v in values], pa.float64())
    return column


def _is_text(kind: pa.DataType) -> bool:
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(values) or pa.types.is_large_string(values))


def _unescape_formula(text: str) -> str:
    return text[1:] if re.match("^'[=+@\\-\t\r']", text) else text
