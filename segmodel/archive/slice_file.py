"""One Parquet file of an archive: whole patients, written by one writer under a name of its own."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from segmodel.archive.reader import READ_THREADS
from segmodel.core import schema
from segmodel.storage import store
from segmodel.storage.pending_file import PendingFile

ROW_GROUP_SLICES = 64
SERIES = "series"
"""Folder of the tables of series: for each file of slices one of the same name."""


@dataclass(frozen=True)
class WrittenFile:
    """What a writer reports of its file; archive.json is made from such reports."""

    name: str
    slices: int
    annotated_slices: int
    patients: int


class SliceFileWriter:
    """Writes one file; it is not there before `publish`.

    Args:
        folder: of the archive.
        name: of the file; no other writer has it.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        self.slices = 0
        self._annotated = 0
        self._patients = 0
        self._pending: list[pa.Table] = []
        self._series: list[pa.Table] = [schema.ARCHIVE_SERIES.empty_table()]
        self._folder = folder
        self._file = PendingFile(store.join(folder, name))
        light = [name for name in schema.ARCHIVE.names if name not in ("pixels", "mask")]
        # A dictionary of images only costs time; texts gain from one. Numbers do well without: a
        # flipped bit in a page's header, which no checksum covers, would give one for another.
        texts = [name for name in light if pa.types.is_string(schema.ARCHIVE.field(name).type)]
        # Without a checksum a flipped bit in pixels that zstd could not shorten goes unnoticed.
        self._writer = pq.ParquetWriter(
            self._file.sink,
            schema.ARCHIVE,
            compression="zstd",
            use_dictionary=texts,
            write_statistics=light,
            write_page_checksum=True,
        )

    def append(self, slices: pa.Table, series: pa.Table) -> None:
        """Add all slices of one patient, in order; patients come in order, too.

        Args:
            slices: `schema.ARCHIVE`, at least one row.
            series: `schema.ARCHIVE_SERIES`, of the same patient.
        """
        self._patients += 1
        self._annotated += slices.num_rows - slices["mask"].null_count
        self.slices += slices.num_rows
        self._pending.append(slices)
        self._series.append(series)
        self._write_row_groups(ROW_GROUP_SLICES)

    def publish(self, check: Callable[[], None]) -> WrittenFile:
        """Write what is pending and make the file appear, the table of its series first.

        Args:
            check: called at the last moment before; raises if the folder is another job's by now.
        """
        self._write_row_groups(1)
        self._writer.close()
        check()
        series = store.join(self._folder, SERIES, self.name)
        store.publish_table(series, pa.concat_tables(self._series))
        self._file.publish()
        return WrittenFile(self.name, self.slices, self._annotated, self._patients)

    def discard(self) -> None:
        """Remove what was written."""
        # pyarrow writes the footer of a writer that was left open when it is collected.
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._writer.is_open = False
        self._file.discard()

    def _write_row_groups(self, at_least: int) -> None:
        pending = pa.concat_tables(self._pending)
        take = pending.num_rows - pending.num_rows % at_least
        if take:
            self._writer.write_table(pending.slice(0, take), row_group_size=ROW_GROUP_SLICES)
        self._pending = [pending.slice(take)]


def read_series(folder: str, names: Iterable[str]) -> pa.Table:
    """`schema.ARCHIVE_SERIES` of some files of an archive; files of version 1 have no series.

    Raises:
        pa.ArrowException, OSError: a file is damaged, or cannot be read.
    """
    there = set(store.list_files(store.join(folder, SERIES), ".parquet"))

    def read(name: str) -> pa.Table:
        with store.open_parquet(store.join(folder, SERIES, name)) as file:
            return file.read().cast(schema.ARCHIVE_SERIES)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        tables = pool.map(read, [name for name in names if name in there])
        return pa.concat_tables([schema.ARCHIVE_SERIES.empty_table(), *tables])
