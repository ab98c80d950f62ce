"""Writes an archive, or adds patients to one, in the order in which it is given them."""

import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pyarrow as pa

from segmodel.archive.manifest import ArchiveInfo, slice_file
from segmodel.archive.slice_file import SliceFileWriter, WrittenFile
from segmodel.archive.slice_format import check_slices
from segmodel.archive.update import ArchiveUpdate
from segmodel.core import schema
from segmodel.core.errors import ArchiveError
from segmodel.core.source_files import SourceFiles

FILE_SLICES = 4096


class ArchiveWriter:
    """Writes patients into the files of an archive; they are in the archive once it is closed.

    Nothing is written before the `with` block. If the block ends without `close`, the files of this
    writer are removed and the archive is as it was.

    Args:
        uri: folder to write.
        source: where the scans come from.
        channels: what each channel shows.
        intensity_scaling: how intensities became 8-bit values.
        overwrite: replace an archive that is already there.
        add: to the archive that is already there.

    Raises:
        ArchiveError: as `ArchiveUpdate` does; or, from `append`, rows that break the format or are
            out of order, or a patient or an id that came before.
    """

    def __init__(
        self,
        uri: str,
        *,
        source: str,
        channels: tuple[str, ...],
        intensity_scaling: str,
        overwrite: bool,
        add: bool = False,
    ) -> None:
        new = ArchiveInfo(
            format_version=schema.FORMAT_VERSION,
            archive_id=uuid.uuid4().hex,
            source=source,
            channels=channels,
            intensity_scaling=intensity_scaling,
            patients=0,
            slices=0,
            annotated_slices=0,
            rejects=0,
            files={},
            reject_files={},
        )
        self.uri = uri
        self.update = ArchiveUpdate(uri, new, overwrite=overwrite, add=add)
        self.check: Callable[[], None] = lambda: None
        """Called before a file is published; raises if the folder is another job's by now."""
        self._ids = self.update.slice_ids
        self._last_patient: str | None = None
        self._file: SliceFileWriter | None = None
        self._written: list[WrittenFile] = []
        self._rejects: list[pa.Table] = [schema.REJECTS.empty_table()]
        self._closed = False

    def append(self, slices: pa.Table, rejects: pa.Table, files: SourceFiles | None = None) -> None:
        """Add all slices of one patient, and the files of that patient that were left out.

        Args:
            slices: `schema.ARCHIVE`; may be empty.
            rejects: `schema.REJECTS`.
            files: what the patient was made from, if that is known.
        """
        self._rejects.append(rejects)
        if slices.num_rows == 0:
            return
        self._check_patient(slices)
        if self._file is None:
            name = slice_file(self.update.ingest, len(self._written))
            self._file = SliceFileWriter(self.uri, name)
        order = [("series_id", "ascending"), ("slice_index", "ascending")]
        self._file.append(slices.sort_by(order), files)
        if self._file.slices >= FILE_SLICES:
            self._publish_file()

    def close(self) -> ArchiveInfo:
        """Write what is pending, the rejects and archive.json."""
        self._publish_file()
        self.check()
        info = self.update.commit(self._written, pa.concat_tables(self._rejects))
        self._closed = True
        return info

    def __enter__(self) -> Self:
        self.update.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._closed:
            return
        try:
            if self._file is not None:
                self._file.discard()
            self.update.abandon()
        except OSError as failure:  # what ended the block must be seen, and not this
            print(f"warning: {self.uri}: unfinished files are left behind: {failure}", flush=True)

    def _check_patient(self, slices: pa.Table) -> None:
        patient = slices["patient_id"][0].as_py()
        if self._last_patient is not None and patient <= self._last_patient:
            raise ArchiveError(
                f"{self.uri}: patient {patient!r} comes after {self._last_patient!r}; "
                "patients must be in order"
            )
        if patient in self.update.patients:
            raise ArchiveError(f"{self.uri}: patient {patient!r} is in the archive already")
        channels = len(self.update.before.channels)
        problems = [f"slice {p.slice_id!r} {p.reason}" for p in check_slices(slices, channels)]
        ids = slices["slice_id"].to_pylist()
        problems += [
            f"slice id {name!r} came with an earlier patient"
            for name in sorted(self._ids.intersection(ids))
        ]
        if problems:
            raise ArchiveError(f"{self.uri}: patient {patient!r}: {problems[0]}")
        self._ids.update(ids)
        self._last_patient = patient

    def _publish_file(self) -> None:
        if self._file is not None:
            self._written.append(self._file.publish(self.check))
            self._file = None
