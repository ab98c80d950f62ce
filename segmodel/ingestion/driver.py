"""Raw scans into an archive: patients are read in parallel on Ray and written in order."""

import errno
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import ray

from segmodel.archive.manifest import MANIFEST, ArchiveInfo
from segmodel.archive.writer import ArchiveWriter
from segmodel.core import schema
from segmodel.core.errors import DiskFullError, SourceError
from segmodel.core.progress import Progress
from segmodel.core.source_files import SourceFiles
from segmodel.runtime import ray_cluster
from segmodel.runtime.tracking import open_tracker
from segmodel.settings.jobs import IngestConfig
from segmodel.sources.base import PatientRecord, Source, open_source
from segmodel.storage import folder_lock, store

Known = dict[str, SourceFiles | None]


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did."""

    archive: ArchiveInfo
    """As it is now."""
    added: int
    """Patients that came in."""
    known: int
    """Patients of the source that were in the archive already."""
    left_out: int
    """Rejects that this ingest found."""


def ingest(config: IngestConfig) -> IngestResult:
    """Write the archive that `config` describes.

    Nothing is written before a patient with a usable slice has been read.

    Raises:
        SourceError: there is nothing to read, or no usable slice in it.
        ArchiveError: an archive is there already; with --append, there is none, or it does not go
            with the source.
        LeaseError: another job writes in that folder.
        LeaseLostError: another job took it over while this one was silent.
        DiskFullError: no space is left.
    """
    source = open_source(config)
    patients = source.patients()
    writer = _open_writer(config, source)
    known = {
        name: writer.update.patients[name] for name in patients if name in writer.update.patients
    }
    with _full_disk_explained(config.archive), ray_cluster.connect():
        progress = Progress(len(patients), "patients")
        records = _with_progress(_read_in_order(source, patients, known), progress)
        first = _read_until_usable(records, source, len(patients), bool(known))
        with (
            folder_lock.hold(config.archive, "--archive") as lease,
            open_tracker(config, "ingest", config.archive) as tracker,
            writer,
        ):
            writer.check = lease.check
            left_out = 0
            for record in chain(first, records):
                writer.append(record.slices, record.rejects, record.files)
                left_out += record.rejects.num_rows
            info = writer.close()
            tracker.record("archive", _tracked(info))
    added = info.patients - writer.update.before.patients
    return IngestResult(info, added, len(known), left_out)


def _open_writer(config: IngestConfig, source: Source) -> ArchiveWriter:
    return ArchiveWriter(
        config.archive,
        source=source.name,
        channels=source.channels,
        intensity_scaling=source.intensity_scaling,
        overwrite=config.overwrite,
        add=config.append,
    )


def _tracked(info: ArchiveInfo) -> dict[str, Any]:
    names = ("patients", "slices", "annotated_slices", "rejects")
    return {"id": info.archive_id, **{name: getattr(info, name) for name in names}}


@ray.remote
def _read(
    source: Source, patient_id: str, known: bool, before: SourceFiles | None
) -> PatientRecord:
    return _look_again(source, patient_id, before) if known else source.read(patient_id)


def _look_again(source: Source, patient_id: str, before: SourceFiles | None) -> PatientRecord:
    """A patient that is in the archive already: a reject, if it was made from other files."""
    difference = source.difference(patient_id, before) if before else None
    rejects = schema.REJECTS.empty_table()
    if difference:
        row = {
            "source_uri": source.place(patient_id),
            "patient_id": patient_id,
            "reason": f"is in the archive already, made from other files ({difference}); "
            "nothing of it was taken: to replace it, ingest all patients with --overwrite",
        }
        rejects = pa.Table.from_pylist([row], schema=schema.REJECTS)
    return PatientRecord(slices=schema.ARCHIVE.empty_table(), rejects=rejects)


def _read_in_order(source: Source, patients: list[str], known: Known) -> Iterator[PatientRecord]:
    """Read ahead by a few patients: enough to keep every CPU busy, few enough to fit in memory."""
    ahead = 2 * ray_cluster.cpus()
    reference = ray.put(source)
    waiting: deque[Any] = deque()
    for patient in patients:
        if len(waiting) >= ahead:
            yield ray_cluster.result_of(waiting.popleft())
        waiting.append(_read.remote(reference, patient, patient in known, known.get(patient)))
    while waiting:
        yield ray_cluster.result_of(waiting.popleft())


def _with_progress(records: Iterator[PatientRecord], progress: Progress) -> Iterator[PatientRecord]:
    for record in records:
        yield record
        progress.advance(1, f"{record.slices.num_rows} slices in the last")


def _read_until_usable(
    records: Iterator[PatientRecord], source: Source, patients: int, may_be_none: bool
) -> list[PatientRecord]:
    """The first records, up to one with a slice.

    Raises:
        SourceError: none has a slice, unless that may be.
    """
    first, rejects = [], []
    for record in records:
        first.append(record)
        rejects += record.rejects.to_pylist()
        if record.slices.num_rows:
            return first
    if may_be_none:
        return first
    example = f"; the first: {rejects[0]['source_uri']}: {rejects[0]['reason']}" if rejects else ""
    raise SourceError(
        f"{source.name}: no usable slice of {patients} patients, so nothing was written; "
        f"{len(rejects)} files were left out{example}"
    )


@contextmanager
def _full_disk_explained(archive: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        there = store.exists(store.join(archive, MANIFEST))
        kept = "the archive that was there is as it was" if there else "nothing of it is kept"
        raise DiskFullError(
            f"{archive}: no space is left there ({error.strerror}); {kept}. "
            "Free some space, or give another --archive, and give the same command again: "
            "it starts from the first patient"
        ) from error
