"""Finds out, before an export starts, which series there are and where their images are."""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from segmodel.archive.reader import Archive
from segmodel.archive.slice_file import read_series
from segmodel.core.errors import ArchiveError, ConfigError, SourceError
from segmodel.core.geometry import SPACING_COLUMNS, Spacing
from segmodel.export.dicom_images import HASHED
from segmodel.export.file_names import SeriesKey
from segmodel.runs.series_masks import RowReader, SeriesRows, Task
from segmodel.settings.export import ExportConfig
from segmodel.sources import dicom_scan
from segmodel.sources.base import ParallelMap
from segmodel.storage import store

KnownSeries = Mapping[SeriesKey, Mapping[str, Any]]
"""Rows of `schema.ARCHIVE_SERIES`."""

_COLUMNS = ["patient_id", "series_id", "affine", "source_format", "turn_axes"]


def key_of(series: SeriesRows) -> SeriesKey:
    """Its patient and series id."""
    return series.patient_id, series.series_id


def chosen_patients(tasks: Sequence[Task], config: ExportConfig) -> list[str] | None:
    """The ids that --patients names, in order and each once; None for all patients.

    A value that is no id of the archive is a list of ids, separated by commas.

    Raises:
        ConfigError: a patient is not there.
    """
    if not config.patients:
        return None
    known = {series.patient_id for task in tasks for series in task.series}
    wanted: set[str] = set()
    for value in config.patients:
        wanted.update([value] if value in known else {name.strip() for name in value.split(",")})
    wanted.discard("")
    missing = wanted - known
    if missing:
        raise ConfigError(
            f"--patients: {len(missing)} of {len(wanted)} patients are not in {config.archive}; "
            f"the first is {min(missing)!r}"
        )
    if not wanted:
        raise ConfigError("--patients names no id, only commas")
    return sorted(wanted)


def only_patients(tasks: Sequence[Task], patients: Collection[str] | None) -> list[Task]:
    """Tasks without the series of other patients; all tasks if `patients` is None."""
    if patients is None:
        return list(tasks)
    kept = [
        Task(task.file, tuple(one for one in task.series if one.patient_id in patients))
        for task in tasks
    ]
    return [task for task in kept if task.series]


def known_series(archive: Archive) -> KnownSeries:
    """What the archive's table says of each series; nothing of archives of version 1.

    Raises:
        ArchiveError: the table is damaged.
    """
    try:
        rows = read_series(archive.uri, archive.files).select(_COLUMNS).to_pylist()
    except pa.ArrowException as error:
        raise ArchiveError(
            f"{archive.uri}: its table of series is damaged ({error}); ingest again"
        ) from error
    return {(row["patient_id"], row["series_id"]): row for row in rows}


def check_spacing(
    archive: Archive,
    index: pa.Table,
    tasks: Sequence[Task],
    known: KnownSeries,
    config: ExportConfig,
) -> None:
    """Refuse voxels without a size, and a spacing that is not needed.

    Raises:
        ArchiveError: a series has no spacing, and the request gives none.
        ConfigError: all have one, and the request gives another.
    """
    starts = dict(zip(archive.files, _starts(archive), strict=False))
    unknown = [
        series
        for task in tasks
        for series in task.series
        if known.get(key_of(series), {}).get("affine") is None
        and spacing_of(index.slice(starts[task.file] + series.first, 1)) is None
    ]
    if unknown and config.spacing_mm is None:
        raise ArchiveError(
            f"{archive.uri}: {len(unknown)} series have no voxel spacing, the first is of patient "
            f"{unknown[0].patient_id!r}: no viewer could measure their masks. If you know "
            "the spacing, give --spacing-mm ROW COL SLICE"
        )
    if config.spacing_mm is not None and not unknown:
        raise ConfigError("--spacing-mm: the archive knows its spacing itself; leave it out")


def _starts(archive: Archive) -> Iterable[int]:
    """Number of the first row of each file among the rows of all."""
    return itertools.accumulate(archive.file_slices().values(), initial=0)


def spacing_of(row: pa.Table) -> Spacing | None:
    """The spacing that a slice of an archive has; None if one length is unknown.

    Args:
        row: one slice, with its light columns.
    """
    (values,) = row.select(SPACING_COLUMNS).to_pylist()
    return None if None in values.values() else Spacing.from_row(values)


def check_dicom(archive: Archive, tasks: Sequence[Task], known: KnownSeries) -> None:
    """Refuse an archive whose images cannot be referred to.

    Raises:
        ArchiveError: it was not made from DICOM, or with --hash-ids.
    """
    series = [key_of(one) for task in tasks for one in task.series]
    if not any(known.get(key, {}).get("source_format") == "dicom" for key in series):
        raise ArchiveError(
            f"{archive.uri} was not made from DICOM images, which a DICOM segmentation refers to; "
            "give --format nifti"
        )
    if HASHED.fullmatch(_source_uri(archive, tasks[0], tasks[0].series[0])):
        raise ArchiveError(
            f"{archive.uri} was made with --hash-ids, and does not know where its images are. A "
            "DICOM segmentation names its patient and would undo that: ingest without --hash-ids "
            "for it, or give --format nifti"
        )


def _source_uri(archive: Archive, task: Task, series: SeriesRows) -> str:
    with store.open_parquet(store.join(archive.uri, task.file)) as file:
        rows = RowReader(file, ["source_uri"]).read(series.first, series.first + 1)
    return str(rows["source_uri"][0].as_py())


def files_of_patients(
    archive: Archive,
    tasks: Sequence[Task],
    known: KnownSeries,
    moved_to: str | None,
    run: ParallelMap,
) -> dict[str, tuple[str, ...]]:
    """URIs of the DICOM files of patients whose images are not where the archive says.

    These are all patients if the files have moved. Otherwise those whose slices are not images, as
    in sagittal scans.

    Args:
        archive: that was segmented.
        tasks: the series to export.
        known: from `known_series`.
        moved_to: the folder of the files, if they have moved since the ingest.
        run: reads portions of the files, on a cluster say.

    Raises:
        SourceError: there is no DICOM image in `moved_to`.
    """
    wanted = [
        (task, series)
        for task in tasks
        for series in task.series
        if (row := known.get(key_of(series)))
        and (moved_to or (row["turn_axes"] or [0])[0] != 0)
        and row["source_format"] == "dicom"
    ]
    patients = {series.patient_id for _, series in wanted}
    if moved_to:
        folders = {moved_to}
    else:
        # An archive file is of one ingest, and so of one folder.
        one_of_file = {task.file: (task, series) for task, series in wanted}
        folders = {_source_uri(archive, task, series) for task, series in one_of_file.values()}
    found: dict[str, list[str]] = defaultdict(list)
    for folder in sorted(folders):
        try:
            scanned = dicom_scan.scan(folder, None, run)
        except SourceError:
            if moved_to:
                raise
            continue  # the folder is gone: each of its series will be a reject
        for patient in patients.intersection(scanned.files):
            found[patient] += [store.join(folder, path) for path in scanned.files[patient]]
    return {patient: tuple(files) for patient, files in found.items()}
