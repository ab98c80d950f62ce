"""Writes a whole archive in one process, without Ray: what an ingest does, patient by patient."""

from types import TracebackType
from typing import Self

import pyarrow as pa

from segmodel.archive import manifest
from segmodel.archive.manifest import ArchiveInfo
from segmodel.archive.slice_file import WrittenFile
from segmodel.archive.update import ArchiveUpdate
from segmodel.archive.writer import PatientsWriter
from segmodel.core import schema
from segmodel.core.source_files import SourceFiles
from segmodel.sources.base import plain_series


class ArchiveWriter:
    """Takes patients in order; they are in the archive once it is closed."""

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
            archive_id=manifest.new_archive_id(),
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
        self.update = ArchiveUpdate(uri, new, overwrite=overwrite, add=add)
        self.check = lambda: None
        self._uri, self._channels = uri, channels
        self._written: list[WrittenFile] = []
        self._next_file()
        self._rejects = [schema.REJECTS.empty_table()]

    def append(
        self, slices: pa.Table, rejects: pa.Table | None = None, files: SourceFiles | None = None
    ) -> None:
        self._rejects.append(schema.REJECTS.empty_table() if rejects is None else rejects)
        self.writer.append(slices, plain_series(slices, "test", self._channels, files))
        if self.writer.written:
            self._written += self.writer.written
            self._next_file()

    def _next_file(self) -> None:
        self.writer = PatientsWriter(
            self._uri,
            self.update.ingest,
            f"{len(self._written):05d}",
            len(self._channels),
            lambda: self.check(),
        )

    def close(self) -> ArchiveInfo:
        written = [*self._written, *self.writer.finish()]
        self.check()
        return self.update.commit(written, pa.concat_tables(self._rejects))

    def __enter__(self) -> Self:
        self.update.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.writer.discard()
