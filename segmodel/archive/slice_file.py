"""One Parquet file of an archive: whole patients, written by one writer under a name of its own."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from segmodel.core import schema
from segmodel.core.source_files import SourceFiles
from segmodel.storage import store
from segmodel.storage.pending_file import PendingFile

ROW_GROUP_SLICES = 64
PATIENTS_KEY = b"segmodel.patients"
"""In the file's footer: what each of its patients was made from, as JSON."""


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
        self._patients: dict[str, SourceFiles | None] = {}
        self._pending: list[pa.Table] = []
        self._file = PendingFile(store.join(folder, name))
        # A dictionary of images only costs time; ids and numbers gain from one.
        light = [name for name in schema.ARCHIVE.names if name not in ("pixels", "mask")]
        # Without a checksum a flipped bit in pixels that zstd could not shorten goes unnoticed.
        self._writer = pq.ParquetWriter(
            self._file.sink,
            schema.ARCHIVE,
            compression="zstd",
            use_dictionary=light,
            write_statistics=light,
            write_page_checksum=True,
        )

    def append(self, slices: pa.Table, files: SourceFiles | None) -> None:
        """Add all slices of one patient, in order; patients come in order, too.

        Args:
            slices: `schema.ARCHIVE`, at least one row.
            files: what the patient was made from, if that is known.
        """
        self._patients[slices["patient_id"][0].as_py()] = files
        self._annotated += slices.num_rows - slices["mask"].null_count
        self.slices += slices.num_rows
        self._pending.append(slices)
        self._write_row_groups(ROW_GROUP_SLICES)

    def publish(self, check: Callable[[], None]) -> WrittenFile:
        """Write what is pending and make the file appear.

        Args:
            check: called at the last moment before; raises if the folder is another job's by now.
        """
        self._write_row_groups(1)
        known = {name: asdict(files) for name, files in self._patients.items() if files}
        self._writer.add_key_value_metadata({PATIENTS_KEY: json.dumps(known)})
        self._writer.close()
        check()
        self._file.publish()
        return WrittenFile(self.name, self.slices, self._annotated, len(self._patients))

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


def read_patients(uri: str) -> dict[str, SourceFiles]:
    """What the patients of a file were made from; those of earlier versions are not in it."""
    with store.open_parquet(uri) as file:
        stored = (file.metadata.metadata or {}).get(PATIENTS_KEY, b"{}")
    return {name: SourceFiles(**files) for name, files in json.loads(stored).items()}
