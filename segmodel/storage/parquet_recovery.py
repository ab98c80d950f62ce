"""Reads the readable parts of damaged Parquet files.

Damage is told from a store that does not answer. On a local disk, an error with an errno comes from
the disk, one without from the Parquet reader. On S3 an error may be either: the file is then
fetched whole and parsed in memory. An error of the fetching is the store's and is raised; an error
of the parsing is damage.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from segmodel.core import schema
from segmodel.core.errors import ArchiveError
from segmodel.storage import store

Result = TypeVar("Result")
READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What reading Parquet raises; UnicodeDecodeError comes from a damaged text in a footer."""


class DamagedFileError(ArchiveError):
    """A file of an archive is missing, is not Parquet, or has unexpected columns."""


def read_footer(uri: str, read: Callable[[pq.ParquetFile], Result]) -> Result:
    """Open a Parquet file and return what `read` makes of its footer.

    Raises:
        DamagedFileError: the file does not exist or is not Parquet.
        OSError: the store does not answer.
    """
    try:
        with store.open_parquet(uri) as file:
            return read(file)
    except READ_ERRORS:
        with _damage_to(uri), reopen(uri) as file:
            return read(file)


def reopen(uri: str) -> pq.ParquetFile:
    """Open a file again after an error, so that `is_damage` can judge the next error.

    Raises:
        DamagedFileError: the file does not exist or is not Parquet.
        OSError: the store does not answer.
    """
    try:
        content = None if store.is_local(uri) else store.read_bytes(uri)
        with _damage_to(uri):
            if content is None:
                return store.open_parquet(uri)
            return pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    except FileNotFoundError:
        raise DamagedFileError(f"{uri}: there is no such file; ingest again") from None


@contextmanager
def _damage_to(uri: str) -> Iterator[None]:
    """Turn errors that mean damage into `DamagedFileError`."""
    try:
        yield
    except READ_ERRORS as error:
        if not is_damage(error):
            raise
        raise DamagedFileError(
            f"{uri}: not a readable Parquet file ({one_line(error)}); ingest again"
        ) from error


def is_damage(error: BaseException) -> bool:
    """Whether an error of a file from `reopen` means damage; otherwise a retry may succeed."""
    # EIO: a bad sector stays bad.
    return not isinstance(error, OSError) or error.errno in (None, errno.EIO)


def read_row_groups(
    uri: str, groups: Sequence[int], columns: list[str]
) -> tuple[pa.Table, dict[int, str]]:
    """Read some columns of some row groups.

    Returns:
        The rows of the readable row groups, and the reason for each of the others.

    Raises:
        DamagedFileError: the file does not exist or is not Parquet.
        OSError: the store does not answer.
    """
    try:
        with store.open_parquet(uri) as file:
            return convert_columns(file.read_row_groups(groups, columns=columns), columns), {}
    except READ_ERRORS:
        with reopen(uri) as file:
            return read_row_groups_of(file, groups, columns)


def read_row_groups_of(
    file: pq.ParquetFile, groups: Sequence[int], columns: list[str]
) -> tuple[pa.Table, dict[int, str]]:
    """`read_row_groups` from a file that `reopen` opened."""
    tables, unreadable = [], {}
    for group in groups:
        try:
            tables.append(convert_columns(file.read_row_group(group, columns=columns), columns))
        except READ_ERRORS as error:
            if not is_damage(error):
                raise
            unreadable[group] = f"cannot be read ({one_line(error)})"
    empty = schema.ARCHIVE.empty_table().select(columns)
    return pa.concat_tables([empty, *tables], promote_options="default"), unreadable


def convert_columns(table: pa.Table, columns: list[str]) -> pa.Table:
    """Convert columns of an archive to the types of today's version.

    Raises:
        pyarrow.ArrowInvalid: a column is missing, has another type or holds invalid text. A footer
            has no checksum, so its damage may look like this.
    """
    fields = [schema.ARCHIVE.field(name) for name in columns]
    return pa.table([_column(table, name) for name in columns], schema=pa.schema(fields))


def _column(table: pa.Table, name: str) -> pa.ChunkedArray | pa.Array:
    kind = schema.ARCHIVE.field(name).type
    if name not in table.column_names and name in schema.ADDED_COLUMNS:
        return pa.nulls(table.num_rows, kind)
    if name not in table.column_names:
        raise pa.ArrowInvalid(f"no column {name!r}")
    found = table[name]
    if found.type != kind:
        if found.type != schema.EARLIER_TYPES.get(name):
            raise pa.ArrowInvalid(f"column {name!r} is {found.type}, expected {kind}")
        return found.cast(kind)
    if pa.types.is_string(kind):
        found.validate(full=True)
    return found


def one_line(error: BaseException) -> str:
    """The message without line breaks."""
    return " ".join(str(error).split())
