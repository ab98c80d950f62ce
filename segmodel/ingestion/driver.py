"""Raw scans into an archive: patients are read in parallel on Ray and written in order."""

from collections import deque
from collections.abc import Iterator

import ray

from segmodel.archive.reader import ArchiveInfo, read_info
from segmodel.archive.writer import ArchiveWriter
from segmodel.core.progress import Progress
from segmodel.runtime import ray_cluster
from segmodel.runtime.tracking import open_tracker, settings_of
from segmodel.settings.jobs import IngestConfig
from segmodel.sources.base import PatientRecord, Source, open_source
from segmodel.storage import folder_lock


def ingest(config: IngestConfig) -> ArchiveInfo:
    """Write the archive that `config` describes.

    Raises:
        SourceError: there is nothing to read.
        ArchiveError: an archive is there already, or a patient or slice id comes twice; with --append, there is none, or it
            holds one of the patients.
        LeaseError: another job writes in that folder.
        LeaseLostError: another one took it over while this one was silent.
    """
    source = open_source(config)
    patients = source.patients()
    if config.append:
        read_info(config.archive)  # or an error, before there is a folder
    with folder_lock.hold(config.archive, "--archive") as held:
        writer = ArchiveWriter(
            config.archive,
            source=source.name,
            channels=source.channels,
            intensity_scaling=source.intensity_scaling,
            overwrite=config.overwrite,
            add=config.append,
        )
        writer.refuse_known(patients)
        with (
            open_tracker(config.tracking, "ingest", config.archive) as tracker,
            ray_cluster.connect(),
            writer,
        ):
            tracker.record("parameters", settings_of(config))
            progress = Progress(len(patients), "patients")
            for record in _read_in_order(source, patients):
                writer.append(record.slices, record.rejects)
                progress.advance(1, f"{record.slices.num_rows} slices in the last")
            held.check()
            info = writer.close()
            tracker.record(
                "archive",
                {
                    "id": info.archive_id,
                    "patients": info.patients,
                    "slices": info.slices,
                    "annotated_slices": info.annotated_slices,
                    "rejects": info.rejects,
                },
            )
    return info


@ray.remote
def _read(source: Source, patient_id: str) -> PatientRecord:
    return source.read(patient_id)


def _read_in_order(source: Source, patients: list[str]) -> Iterator[PatientRecord]:
    """Read ahead by a few patients: enough to keep every CPU busy, few enough to fit in memory."""
    ahead = 2 * ray_cluster.cpus()
    reference = ray.put(source)
    waiting = deque(_read.remote(reference, patient) for patient in patients[:ahead])
    for patient in [*patients[ahead:], *[None] * len(waiting)]:
        yield ray_cluster.result_of(waiting.popleft())
        if patient is not None:
            waiting.append(_read.remote(reference, patient))
