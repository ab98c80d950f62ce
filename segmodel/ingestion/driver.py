"""Raw scans into an archive: Ray tasks read patients and write the archive's files.

The driver sees names and counts, no pixels. The same command resumes an ingest that broke off.
"""

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from segmodel.archive import manifest
from segmodel.archive.manifest import MANIFEST, ArchiveInfo
from segmodel.archive.update import ArchiveUpdate
from segmodel.core import schema
from segmodel.core.errors import DiskFullError, SourceError
from segmodel.core.progress import Progress, say
from segmodel.ingestion import portion as portions
from segmodel.ingestion.portion import Known, Portion, Report, Target
from segmodel.ingestion.portion_tasks import process_portions
from segmodel.runtime import ray_cluster
from segmodel.runtime.ray_tasks import WORKER_DIED, map_on_ray, why_died
from segmodel.runtime.tracking import open_tracker
from segmodel.settings.ingest import IngestConfig
from segmodel.sources.base import Source, read_patient
from segmodel.sources.registry import open_source
from segmodel.storage import folder_lock, store


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did."""

    archive: ArchiveInfo
    """The archive as it is now."""
    added: int
    """Patients that this ingest added."""
    known: int
    """Patients of the source that were in the archive already."""
    new_series: int
    """Series that came in of those."""
    left_out: int
    """Rejects that this ingest found."""
    patients_left_out: int
    """Patients of the source that have no slice in the archive."""
    too_many_rejected: bool
    """More than --max-rejected of the patients were left out."""

    @property
    def exit_code(self) -> int:
        """0, or 3 when more patients were left out than was allowed."""
        return 3 if self.too_many_rejected else 0


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
    with ray_cluster.connect():
        source = open_source(config, map_on_ray)
        update = ArchiveUpdate(
            config.archive, _new_archive(source), overwrite=config.overwrite, add=config.append
        )
        patients = source.patients()
        known = {name: update.known[name] for name in patients if name in update.known}
        _check_usable(source, [name for name in patients if name not in known], bool(known))
        with (
            _full_disk_explained(config.archive),
            folder_lock.acquire_lock(config.archive, "--archive") as lease,
        ):
            result = _ingest_held(config, source, update, patients, known, lease)
    return result


def _new_archive(source: Source) -> ArchiveInfo:
    return ArchiveInfo(
        format_version=schema.FORMAT_VERSION,
        archive_id=manifest.new_archive_id(),
        source=source.name,
        channels=source.channels,
        intensity_scaling=source.intensity_scaling,
        patients=0,
        slices=0,
        annotated_slices=0,
        rejects=0,
        files={},
        reject_files={},
    )


def _check_usable(source: Source, patients: Sequence[str], may_be_none: bool) -> None:
    """Read patients until one has a usable slice.

    Raises:
        SourceError: no patient has one, unless `may_be_none`.
    """
    rejects: list[dict[str, Any]] = []
    for patient in patients:
        task = _count_slices.remote(source.restricted_to(patient), patient)
        try:
            found, reasons = ray_cluster.get_result(task)
        except WORKER_DIED as error:
            rejects.append({"source_uri": source.location_of(patient), "reason": why_died(error)})
            continue
        rejects += reasons
        if found:
            return
    if may_be_none:
        return
    example = f"; the first: {rejects[0]['source_uri']}: {rejects[0]['reason']}" if rejects else ""
    raise SourceError(
        f"{source.name}: no usable slice of {len(patients)} patients, so nothing was written; "
        f"{len(rejects)} files were left out{example}"
    )


@ray.remote(max_retries=0)
def _count_slices(source: Source, patient: str) -> tuple[int, list[dict[str, Any]]]:
    record = read_patient(source, patient)
    return record.slices.num_rows, record.rejects.to_pylist()


def _ingest_held(
    config: IngestConfig,
    source: Source,
    update: ArchiveUpdate,
    patients: list[str],
    known: Known,
    lease: folder_lock.Lease,
) -> IngestResult:
    planned = portions.plan(patients)
    done = _resume(update, source, planned)
    update.begin()
    target = Target(config.archive, update.ingest, len(source.channels), lease.for_workers())
    left = [portion for portion in planned if portion.part not in done]
    if done:
        say(
            f"continuing: {sum(len(p.patients) for p in planned if p.part in done)} of "
            f"{len(patients)} patients were read before this ingest was interrupted"
        )
    progress = Progress(len(patients), "patients", done=len(patients) - _patients_of(left))
    for portion, report in process_portions(source, left, known, target):
        lease.check()
        done[portion.part] = report
        progress.advance(len(portion.patients), f"{report.slices} slices in the last portion")
    lease.check()
    reports = [done[part] for part in sorted(done)]
    info = update.commit(
        [file for report in reports for file in report.files],
        portions.to_table([*source.problems(), *_rows(reports, "rejects")], schema.REJECTS),
        portions.to_table(_rows(reports, "choices"), schema.SERIES_CHOICES),
        sum(report.added for report in reports),
    )
    with open_tracker(config, "ingest", config.archive) as tracker:
        tracker.record("archive", _tracked(info))
    return _result(config, update, info, reports, patients, known)


def _result(
    config: IngestConfig,
    update: ArchiveUpdate,
    info: ArchiveInfo,
    reports: Sequence[Report],
    patients: Sequence[str],
    known: Known,
) -> IngestResult:
    added = info.patients - update.before.patients
    left_out = len(patients) - len(known) - added
    return IngestResult(
        archive=info,
        added=added,
        known=len(known),
        new_series=sum(report.new_series for report in reports),
        left_out=len(_rows(reports, "rejects")),
        patients_left_out=left_out,
        too_many_rejected=left_out > config.max_rejected * len(patients),
    )


def _patients_of(planned: Sequence[Portion]) -> int:
    return sum(len(portion.patients) for portion in planned)


def _rows(reports: Sequence[Report], name: str) -> list[dict[str, Any]]:
    return [row for report in reports for row in getattr(report, name)]


def _resume(update: ArchiveUpdate, source: Source, planned: Sequence[Portion]) -> dict[str, Report]:
    """The reports, by portion, of an earlier call of the same request."""
    request = {
        "source": source.name,
        "scaling": source.intensity_scaling,
        "settings": source.settings,
        "patients": [portion.patients for portion in planned],
    }
    text = json.dumps(request, sort_keys=True, default=str)
    reports = update.resume(hashlib.sha256(text.encode()).hexdigest())
    # If a worker dies, the patients of its portion are read one by one. A resumed ingest reads them
    # together again.
    parts = {portion.part for portion in planned}
    return {
        part: report
        for part, content in reports.items()
        if part in parts and (report := _report(content)) is not None
    }


def _report(content: bytes) -> Report | None:
    try:
        return Report.from_json(content)
    except ValueError:
        return None


def _tracked(info: ArchiveInfo) -> dict[str, Any]:
    names = ("patients", "slices", "annotated_slices", "rejects")
    return {"id": info.archive_id, **{name: getattr(info, name) for name in names}}


@contextmanager
def _full_disk_explained(archive: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        there = store.exists(store.join(archive, MANIFEST))
        kept = "the archive that was there is as it was; " if there else ""
        raise DiskFullError(
            f"{archive}: no space is left there ({error.strerror}); {kept}what was read is kept. "
            "Free some space and give the same command again: it goes on from there"
        ) from error
