"""Writes an archive, and adds patients to one: archive.json is written last and names the files that count."""

import uuid
from collections.abc import Iterable
from dataclasses import asdict, replace
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from segmodel.archive.reader import MANIFEST, Archive, ArchiveInfo
from segmodel.archive.slice_format import check_slices
from segmodel.core import schema
from segmodel.core.errors import ArchiveError
from segmodel.storage import store

REJECTS = "rejects/rejects.parquet"
ROW_GROUP_SLICES = 64
FILE_SLICES = 4096


class ArchiveWriter:
    """Writes an archive in the order in which it is given patients; they are in the archive once it is closed.

    Adding to an archive writes new files beside the old ones, which stay as they are. Until archive.json is replaced, at the
    end, the archive is the old one: files that it does not name do not count.

    Args:
        uri: folder to write.
        overwrite: remove an archive that is already there.
        add: to the archive that is already there.

    Raises:
        ArchiveError: something is there already, or nothing to add to, or what there is has other channels or another scaling;
            or, from `append`, rows out of order, or a patient or an id that came before.
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
        self.uri = uri
        self._pending: list[pa.Table] = []
        self._rejects: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None
        self._file_slices = 0
        self._last_patient: str | None = None
        self._ids: set[str] = set()
        self._patients: set[str] = set()
        self._new: dict[str, int] = {}
        self._before = ArchiveInfo(
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
        )
        self._annotated = 0
        if add:
            self._before = self._open_old(self._before)
        else:
            _make_room(uri, overwrite)
        self._first_file = 1 + max((_number(name) for name in self._before.files or {}), default=-1)

    def _open_old(self, new: ArchiveInfo) -> ArchiveInfo:
        """What there is, once it is known to go with what comes."""
        archive = Archive(self.uri)
        info = archive.info
        for name, found, wanted in (
            ("channels", ", ".join(info.channels), ", ".join(new.channels)),
            ("intensity scaling", info.intensity_scaling, new.intensity_scaling),
        ):
            if found != wanted:
                raise ArchiveError(
                    f"{self.uri}: its {name}: {found}; those of the new scans: {wanted}; ingest them elsewhere"
                )
        index = archive.index().select(["slice_id", "patient_id"])
        self._ids, self._patients = (
            set(index["slice_id"].to_pylist()),
            set(index["patient_id"].unique().to_pylist()),
        )
        if archive.unnamed:
            print(
                f"{self.uri}: ignoring {', '.join(archive.unnamed)}, which {MANIFEST} does not name",
                flush=True,
            )
        if info.files is None:
            # Of an earlier version: from now on the files have names, so that new ones do not count before their time.
            info = replace(info, files=archive.file_slices())
            store.publish_json(store.join(self.uri, MANIFEST), asdict(info))
        if info.rejects:
            with store.open_parquet(store.join(self.uri, REJECTS)) as file:
                self._rejects.append(
                    file.read().slice(0, info.rejects)
                )  # an append that broke off may have left more
        sources = (
            info.source if new.source in info.source.split("; ") else f"{info.source}; {new.source}"
        )
        return replace(info, source=sources)

    def refuse_known(self, patients: Iterable[str]) -> None:
        """Look at all patients before the first is read.

        Raises:
            ArchiveError: one of them is in the archive already.
        """
        known = sorted(self._patients.intersection(patients))
        if known:
            raise ArchiveError(
                f"{self.uri} holds {len(known)} of these patients already, the first is {known[0]!r}; "
                "give --append a source of new patients only"
            )

    def append(self, slices: pa.Table, rejects: pa.Table) -> None:
        """Add all slices of one patient, and the files of that patient that were left out."""
        self._rejects.append(rejects)
        if slices.num_rows == 0:
            return
        patient = slices["patient_id"][0].as_py()
        if self._last_patient is not None and patient <= self._last_patient:
            raise ArchiveError(
                f"{self.uri}: patient {patient!r} comes after {self._last_patient!r}; patients must be in order"
            )
        self.refuse_known([patient])
        problems = [
            f"slice {p.slice_id!r} {p.reason}"
            for p in check_slices(slices, len(self._before.channels))
        ]
        twice = self._ids.intersection(slices["slice_id"].to_pylist())
        problems += [f"slice id {name!r} came with an earlier patient" for name in sorted(twice)]
        if problems:
            raise ArchiveError(f"{self.uri}: patient {patient!r}: {problems[0]}")
        self._ids.update(slices["slice_id"].to_pylist())
        self._patients.add(patient)
        self._last_patient = patient
        self._annotated += slices.num_rows - slices["mask"].null_count
        self._pending.append(
            slices.sort_by([("series_id", "ascending"), ("slice_index", "ascending")])
        )
        self._write_row_groups(ROW_GROUP_SLICES)
        if self._file_slices >= FILE_SLICES:
            self._close_file()

    def close(self) -> ArchiveInfo:
        """Write what is pending, the rejects and archive.json."""
        self._close_file()
        rejects = pa.concat_tables([schema.REJECTS.empty_table(), *self._rejects])
        store.publish_table(store.join(self.uri, REJECTS), rejects)
        info = replace(
            self._before,
            patients=len(self._patients),
            slices=len(self._ids),
            annotated_slices=self._before.annotated_slices + self._annotated,
            rejects=rejects.num_rows,
            files={**(self._before.files or {}), **self._new},
        )
        store.publish_json(store.join(self.uri, MANIFEST), asdict(info))
        return info

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # archive.json stays as it is on an error, or is not there: what was written does not count.
        if self._writer is not None:
            self._writer.close()
            self._sink.close()

    def _write_row_groups(self, at_least: int) -> None:
        pending = pa.concat_tables(self._pending)
        take = pending.num_rows - pending.num_rows % at_least
        if take:
            if self._writer is None:
                self._name = f"part-{self._first_file + len(self._new):05d}.parquet"
                self._sink = store.open_output(store.join(self.uri, self._name))
                # A dictionary of images only costs time; ids and numbers gain from one.
                light = [name for name in schema.ARCHIVE.names if name not in ("pixels", "mask")]
                # A flipped bit in pixels that zstd could not shorten would go unnoticed without a checksum.
                self._writer = pq.ParquetWriter(
                    self._sink,
                    schema.ARCHIVE,
                    compression="zstd",
                    use_dictionary=light,
                    write_statistics=light,
                    write_page_checksum=True,
                )
            self._writer.write_table(pending.slice(0, take), row_group_size=ROW_GROUP_SLICES)
            self._file_slices += take
        self._pending = [pending.slice(take)]

    def _close_file(self) -> None:
        if self._pending:
            self._write_row_groups(1)
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._new[self._name] = self._file_slices
            self._writer, self._file_slices = None, 0


def _make_room(uri: str, overwrite: bool) -> None:
    left_over = store.list_files(uri, ".parquet")
    if (left_over or store.exists(store.join(uri, MANIFEST))) and not overwrite:
        state = (
            "already holds an archive"
            if store.exists(store.join(uri, MANIFEST))
            else "holds an unfinished archive"
        )
        raise ArchiveError(
            f"{uri} {state}; give --overwrite to replace it, --append to add patients to an archive, or another --archive"
        )
    for name in (MANIFEST, *left_over, REJECTS):
        store.remove(store.join(uri, name))


def _number(name: str) -> int:
    """Of a file of an archive: 7 of `part-00007.parquet`; -1 of a file with another name."""
    digits = name.removeprefix("part-").removesuffix(".parquet")
    return int(digits) if digits.isdecimal() else -1
