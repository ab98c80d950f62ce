"""Writes some patients of an archive, in order, into files of its own.

Several writers may write at once, each with its own part of an ingest. What they report goes into
archive.json by `ArchiveUpdate`; until then their files do not count.
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from segmodel.archive.manifest import slice_file
from segmodel.archive.slice_file import SliceFileWriter, WrittenFile
from segmodel.archive.slice_format import check_slices
from segmodel.core.errors import ArchiveError

FILE_SLICES = 4096


class PatientsWriter:
    """Writes patients into files.

    Args:
        folder: of the archive.
        ingest: id of the ingest.
        part: names this writer's files apart from those of other writers of the ingest.
        channels: number of channels of each slice.
        check: called before a file appears; raises if the folder is another job's by now.
    """

    def __init__(
        self, folder: str, ingest: str, part: str, channels: int, check: Callable[[], None]
    ) -> None:
        self.folder, self.ingest, self.part = folder, ingest, part
        self.channels, self.check = channels, check
        self.written: list[WrittenFile] = []
        self._file: SliceFileWriter | None = None
        self._last_patient: str | None = None

    def append(self, slices: pa.Table, series: pa.Table) -> None:
        """Add all slices of one patient.

        Args:
            slices: `schema.ARCHIVE`, of one patient, who comes after the last one; may be empty.
            series: `schema.ARCHIVE_SERIES`, of the same patient.

        Raises:
            ArchiveError: a row breaks the format, or the patient is out of order.
        """
        if slices.num_rows == 0:
            return
        self._check_patient(slices)
        if self._file is None:
            more = f"-{len(self.written)}" if self.written else ""
            name = slice_file(self.ingest, self.part + more)
            self._file = SliceFileWriter(self.folder, name)
        self._file.append(_sorted(slices), series)
        if self._file.slices >= FILE_SLICES:
            self._publish_file()

    def finish(self) -> list[WrittenFile]:
        """Publish the last file; all files of this writer."""
        self._publish_file()
        return self.written

    def discard(self) -> None:
        """Remove the file that is begun; published ones stay."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _check_patient(self, slices: pa.Table) -> None:
        patient = slices["patient_id"][0].as_py()
        if self._last_patient is not None and patient <= self._last_patient:
            raise ArchiveError(
                f"{self.folder}: patient {patient!r} comes after {self._last_patient!r}; "
                "patients must be in order"
            )
        for problem in check_slices(slices, self.channels):
            raise ArchiveError(
                f"{self.folder}: patient {patient!r}: slice {problem.slice_id!r} {problem.reason}"
            )
        self._last_patient = patient

    def _publish_file(self) -> None:
        if self._file is not None:
            self.written.append(self._file.publish(self.check))
            self._file = None


def _sorted(slices: pa.Table) -> pa.Table:
    """By series and slice index; no copy of the pixels if they are in that order already."""
    keys = slices.select(["series_id", "slice_index"])
    order = [(name, "ascending") for name in keys.column_names]
    places = pc.sort_indices(keys, order)
    return (
        slices if places.equals(pa.array(range(len(places)), pa.uint64())) else slices.take(places)
    )
