"""Exports the masks of a segmentation on Ray, series by series; it can be resumed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pyarrow as pa

from segmodel.archive.reader import Archive
from segmodel.core.errors import ConfigError
from segmodel.core.geometry import Spacing
from segmodel.core.progress import Progress, say
from segmodel.export import portion as portions
from segmodel.export import preflight
from segmodel.export.file_names import SeriesKey, file_stems
from segmodel.export.portion import Portion, export_portion
from segmodel.export.preflight import key_of
from segmodel.export.records import TABLE_COLUMNS, Exported, Model, Reject, Report, Target
from segmodel.runs import finished_run, run_file, series_masks
from segmodel.runs.run_file import Run
from segmodel.runs.series_masks import Task
from segmodel.runtime import ray_cluster
from segmodel.runtime.ray_tasks import map_on_ray
from segmodel.runtime.tracking import TRACKED, open_tracker
from segmodel.settings.export import ExportConfig
from segmodel.storage import csv_files, folder_lock, store
from segmodel.storage.folder_lock import Lease
from segmodel.storage.output_folder import OutputLayout, explain_full_disk

TABLE, REJECTS = "exported.csv", "rejects.csv"
LAYOUT = OutputLayout(
    run_file="export.json",
    key="request",
    results=("nifti", "dicom-seg", TABLE, REJECTS, portions.REPORTS, TRACKED),
)
_FULL_DISK = "What was exported is kept. Free some space and give the same command again"


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote."""

    exported: tuple[Exported, ...]
    rejects: tuple[Reject, ...]
    too_many_rejected: bool

    @property
    def incomplete(self) -> int:
        """Series that were exported, with slices of which nothing is known."""
        return sum(row.slices_unknown > 0 for row in self.exported)

    @property
    def exit_code(self) -> int:
        """0, or 3 when more series were rejected than was allowed."""
        return 3 if self.too_many_rejected else 0


def export(config: ExportConfig) -> ExportResult:
    """Export the masks of a finished segmentation.

    Raises:
        RequestError: the segmentation is of another archive or not finished, a patient is not
            there, voxels have no size, there are no DICOM images to refer to, or the output folder
            holds something else.
        LeaseError: another job writes in that folder.
        LeaseLostError: another job took it over while this one was silent.
        DiskFullError: no space is left.
    """
    archive, run = Archive(config.archive or ""), config.segmentation or ""
    finished_run.check_run(run, archive)
    index, known = archive.index(), preflight.known_series(archive)
    every = series_masks.plan(archive, index)
    patients = preflight.chosen_patients(every, config)
    tasks = preflight.only_patients(every, patients)
    if config.format == "dicom-seg":
        preflight.check_dicom(archive, tasks, known)
    else:
        preflight.check_spacing(archive, index, tasks, known, config)
    planned = _portions(tasks, index)
    values = run_file.read(run)
    request = _request(config, archive, values, patients)
    _check_output(config, request)
    with (
        explain_full_disk(config.output, lambda: _FULL_DISK),
        folder_lock.acquire_lock(config.output) as lease,
        open_tracker(config, "export", config.output) as tracker,
        ray_cluster.connect(),
    ):
        if config.format == "dicom-seg":
            moved_to = config.dicom_source
            files = preflight.files_of_patients(archive, tasks, known, moved_to, map_on_ray)
            planned = [_with_files(portion, files) for portion in planned]
        done = _begin(config, request, planned)
        target = _target(config, archive, values, lease)
        reports = [*done.values(), *_export(planned, done, target, lease)]
        result = _finish(config, request, reports)
        counts = {"series": len(result.exported), "rejects": len(result.rejects)}
        tracker.record("export", {**counts, "incomplete": result.incomplete})
    return result


def _key(row: Exported | Reject) -> SeriesKey:
    return row.patient_id, row.series_id


def _portions(tasks: Sequence[Task], index: pa.Table) -> list[Portion]:
    keys = index.group_by(["patient_id", "series_id"]).aggregate([])
    stems = file_stems(list(zip(*(column.to_pylist() for column in keys.columns), strict=True)))
    return [Portion(task, tuple(stems[key_of(one)] for one in task.series)) for task in tasks]


def _with_files(portion: Portion, files: Mapping[str, tuple[str, ...]]) -> Portion:
    """A portion that knows the files of its patients."""
    return replace(
        portion, files=tuple(files.get(one.patient_id, ()) for one in portion.task.series)
    )


def _request(
    config: ExportConfig, archive: Archive, run: Run, patients: list[str] | None
) -> dict[str, Any]:
    """Everything on which the content of the files depends, as JSON."""
    request = {
        "format": config.format,
        "archive_id": archive.info.archive_id,
        "segmentation": run.fingerprint.sha256,
        "segmentation_finished": run.finished,
        "postprocessing": run.summary,
        "patients": patients,
        "with_images": config.with_images,
        "spacing_mm": config.spacing_mm,
    }
    found: dict[str, Any] = json.loads(json.dumps(request))
    return found


def _check_output(config: ExportConfig, request: Mapping[str, Any]) -> bool:
    """Whether the folder holds an unfinished export of the same request.

    Raises:
        ConfigError: it holds another export, or one that is finished.
    """
    if not LAYOUT.holds_run(config.output) or config.overwrite:
        return False
    found = json.loads(store.read_bytes(store.join(config.output, LAYOUT.run_file)))
    advice = "give --overwrite to replace it, or another --output"
    if found.get("finished"):
        raise ConfigError(f"{config.output} holds an export; {advice}")
    different = [name for name in request if found["request"].get(name) != request[name]]
    if different:
        raise ConfigError(
            f"{config.output} holds an unfinished export of another request "
            f"({', '.join(different)}); {advice}"
        )
    return True


def _begin(
    config: ExportConfig, request: Mapping[str, Any], planned: Sequence[Portion]
) -> dict[str, Report]:
    """Mark the folder; what an earlier call of the same request has done, by name of the report."""
    resumed = _check_output(config, request)  # again: another job may have had the folder
    if not resumed:
        if LAYOUT.holds_run(config.output):
            LAYOUT.remove_run(config.output)
        _write_run(config, request, finished=None)
        return {}
    reports = set(store.list_files(store.join(config.output, portions.REPORTS), ".json"))
    files = {
        f"{config.format}/{name}"
        for name in store.list_files(store.join(config.output, config.format))
    }
    done = {}
    for name in reports & {one.report for one in planned}:
        report = _report(store.join(config.output, portions.REPORTS, name))
        if report is not None and files.issuperset(report.files):
            done[name] = report
    return done


def _report(uri: str) -> Report | None:
    try:
        return Report.from_json(store.read_bytes(uri))
    except ValueError:
        return None


def _target(config: ExportConfig, archive: Archive, run: Run, lease: Lease) -> Target:
    spacing = None
    if config.spacing_mm is not None:
        row_mm, column_mm, slice_mm = config.spacing_mm
        spacing = Spacing(slice_mm=slice_mm, row_mm=row_mm, column_mm=column_mm)
    return Target(
        archive=archive.uri,
        run=config.segmentation or "",
        output=config.output,
        format=config.format,
        channels=archive.info.channels,
        with_images=config.with_images,
        spacing=spacing,
        model=_model(run),
        lease=lease.for_workers(),
    )


def _model(run: Run) -> Model:
    made = run.fingerprint
    return Model(
        version=made.code_version,
        weights_sha256=made.weights_sha256,
        threshold=made.threshold,
        postprocessing="none" if run.summary is None else json.dumps(run.summary),
    )


def _export(
    planned: Sequence[Portion], done: Mapping[str, Report], target: Target, lease: Lease
) -> list[Report]:
    """Export what is not done."""
    left = [portion for portion in planned if portion.report not in done]
    total = sum(len(portion.task.series) for portion in planned)
    before = total - sum(len(portion.task.series) for portion in left)
    if before:
        say(f"continuing: {before} of {total} series were exported before")
    progress = Progress(total, "series", done=before)
    reports = []
    for report in map_on_ray(export_portion, left, target):
        lease.check()
        reports.append(report)
        progress.advance(len(report.exported) + len(report.rejects))
    return reports


def _finish(
    config: ExportConfig, request: Mapping[str, Any], reports: Sequence[Report]
) -> ExportResult:
    exported = sorted((row for report in reports for row in report.exported), key=_key)
    rejects = sorted((row for report in reports for row in report.rejects), key=_key)
    table = pa.Table.from_pylist([asdict(row) for row in exported], schema=TABLE_COLUMNS)
    csv_files.publish_csv_table(store.join(config.output, TABLE), table)
    names = [field.name for field in fields(Reject)]
    csv_files.publish_csv(
        store.join(config.output, REJECTS), [asdict(row) for row in rejects], names
    )
    _write_run(config, request, run_file.now())
    store.remove(store.join(config.output, portions.REPORTS))
    allowed = config.max_rejected * (len(exported) + len(rejects))
    return ExportResult(tuple(exported), tuple(rejects), len(rejects) > allowed)


def _write_run(config: ExportConfig, request: Mapping[str, Any], finished: str | None) -> None:
    values = {
        "request": request,
        "archive": config.archive,
        "segmentation": config.segmentation,
        "finished": finished,
    }
    store.publish_json(store.join(config.output, LAYOUT.run_file), values)
