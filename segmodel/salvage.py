"""Reads what can be read of damaged Parquet files, and tells damage from a store that does not answer.

An error of the Parquet reader may be either. The bytes are then fetched whole and parsed in memory: what fails at the fetching
is the store's fault and is raised, what fails in memory is damage.
"""

import errno
from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from segmodel import storage
from segmodel.errors import ArchiveError

Result = TypeVar("Result")
_FAILED = (pa.ArrowException, OSError)


class DamagedFileError(ArchiveError):
    """A file of an archive is gone, is no Parquet, or has other columns than it should."""


def parse(uri: str, read: Callable[[pq.ParquetFile], Result]) -> Result:
    """What `read` makes of a Parquet file.

    Raises:
        DamagedFileError: there is no such file, or its bytes are no Parquet.
        OSError: the store does not give them.
    """
    try:
        with storage.open_parquet(uri) as file:
            return read(file)
    except _FAILED:
        with in_memory(uri) as file:
            return read(file)


def in_memory(uri: str) -> pq.ParquetFile:
    """The whole file, fetched now; raises as `parse` does."""
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        raise DamagedFileError(f"{uri}: there is no such file; ingest again") from None
    except OSError as error:
        # A bad sector of a local disk stays bad; a store that fails otherwise may work the next time.
        if error.errno == errno.EIO and storage.is_local(uri):
            raise DamagedFileError(f"{uri}: cannot be read from the disk ({error}); ingest again") from error
        raise
    try:
        return pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    except _FAILED as error:
        raise DamagedFileError(f"{uri}: not a readable Parquet file ({one_line(error)}); ingest again") from error


def read_groups(uri: str, groups: Sequence[int], columns: list[str]) -> tuple[pa.Table, dict[int, str]]:
    """Some columns of some row groups, and why each of the others could not be read.

    Raises:
        DamagedFileError: there is no such file, or its bytes are no Parquet.
        OSError: the store does not give them.
    """
    try:
        with storage.open_parquet(uri) as file:
            return valid(file.read_row_groups(groups, columns=columns)), {}
    except _FAILED:
        with in_memory(uri) as file:
            return read_groups_of(file, groups, columns)


def read_groups_of(file: pq.ParquetFile, groups: Sequence[int], columns: list[str]) -> tuple[pa.Table, dict[int, str]]:
    """`read_groups` of a file in memory."""
    tables, unreadable = [], {}
    for group in groups:
        try:
            tables.append(valid(file.read_row_group(group, columns=columns)))
        except _FAILED as error:
            unreadable[group] = f"cannot be read ({one_line(error)})"
    return pa.concat_tables([file.schema_arrow.empty_table().select(columns), *tables]), unreadable


def valid(table: pa.Table) -> pa.Table:
    """The table itself, once its texts are known to be texts.

    Raises:
        pyarrow.ArrowInvalid: bytes of a text that are no UTF-8, as damage leaves them in a file without checksums.
    """
    for column in table.columns:
        if pa.types.is_string(column.type):
            column.validate(full=True)
    return table


def one_line(error: BaseException) -> str:
    """The message without line breaks."""
    return " ".join(str(error).split())
