"""Judges one or several segmentations against an archive's masks, series by series on Ray."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from segmodel.archive.reader import Archive
from segmodel.core.errors import ArchiveError, ConfigError
from segmodel.core.progress import Progress
from segmodel.evaluation import results
from segmodel.evaluation.cases import Case, LesionRow, Outcome, evaluate_task
from segmodel.evaluation.pairing import Unpaired
from segmodel.evaluation.results import LAYOUT, Evaluation
from segmodel.evaluation.summary import Group
from segmodel.report import evaluation_page
from segmodel.report.page import REPORT
from segmodel.runs import series_masks
from segmodel.runs.finished_run import check_run
from segmodel.runs.series_masks import Task
from segmodel.runtime import ray_cluster
from segmodel.runtime.ray_tasks import map_on_ray
from segmodel.runtime.tracking import open_tracker
from segmodel.settings.evaluate import EvaluateConfig
from segmodel.storage import folder_lock, store
from segmodel.storage.output_folder import explain_full_disk

_FULL_DISK = "Free some space there and give the same command with --overwrite"


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Compare segmentations with the truth, and write the tables.

    Raises:
        RequestError: a segmentation is of another archive or not finished, there is no truth, or
            the output folder holds something else.
        SegmentationError: a file of a segmentation cannot be read.
    """
    archive = Archive(config.archive)
    if not archive.info.annotated_slices:
        raise ArchiveError(
            f"{config.archive}: no slice has a mask: there is no truth to compare with"
        )
    names = dict(zip(config.segmentations, name_runs(config.segmentations), strict=True))
    seen = {run: check_run(run, archive) for run in names}
    _check_output(config)
    tasks = series_masks.plan(archive, archive.index())
    with (
        explain_full_disk(config.output, lambda: _FULL_DISK),
        folder_lock.acquire_lock(config.output) as held,
        open_tracker(config, "evaluate", config.output) as tracker,
        ray_cluster.connect(),
    ):
        # Once more, now that no other job works in the folder: one may have done so since.
        _check_output(config)
        outcomes = {
            name: _evaluate(config, tasks, run, name, seen[run]) for run, name in names.items()
        }
        if not any(outcome.cases for outcome in outcomes.values()):
            raise ArchiveError(
                f"{config.archive}: no annotated series could be compared: {_reasons(outcomes)}"
            )
        held.check()
        evaluation = results.write(config, outcomes)
        evaluation_page.write(config.output)
        page = store.read_bytes(store.join(config.output, REPORT))
        tracker.upload("report", page, "html", shows_patients=True)
        for number, (name, groups) in enumerate(evaluation.groups.items(), 1):
            tracker.record_private(f"evaluation/{number}", {"segmentation": name})
            for group in groups:
                tracker.record(f"evaluation/{number}/{group.name}", _numbers(group))
    return evaluation


def _reasons(outcomes: dict[str, Outcome]) -> str:
    found = {row.reason for outcome in outcomes.values() for row in outcome.unpaired}
    return "; ".join(sorted(found)) or "none has a mask"


def name_runs(runs: Sequence[str]) -> list[str]:
    """The last parts of the folders' names, as many as make the names distinct."""
    parts = [run.rstrip("/").split("/") for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(runs)


def _check_output(config: EvaluateConfig) -> None:
    if LAYOUT.holds_run(config.output) and not config.overwrite:
        raise ConfigError(
            f"{config.output} holds an evaluation; give --overwrite to replace it, or another "
            "--output"
        )


def _evaluate(
    config: EvaluateConfig, tasks: Sequence[Task], run: str, name: str, seen: dict[str, str]
) -> Outcome:
    progress = Progress(len(tasks), f"parts of {name}")
    found = Outcome([], [], [])
    shared = (config.archive, run, name, seen, config.tolerance_mm)
    for outcome in map_on_ray(evaluate_task, tasks, *shared):
        found.cases.extend(outcome.cases)
        found.lesions.extend(outcome.lesions)
        found.unpaired.extend(outcome.unpaired)
        progress.advance(1)
    return Outcome(
        sorted(found.cases, key=_key),
        sorted(found.lesions, key=_key),
        sorted(found.unpaired, key=_key),
    )


def _key(row: Case | LesionRow | Unpaired) -> tuple[str, str]:
    return row.patient_id, row.series_id


def _numbers(group: Group) -> dict[str, Any]:
    dice = {f"dice_{key}": value for key, value in asdict(group.tumor_patients["dice"]).items()}
    return {"patients": group.patients, "pooled_dice": group.pooled_dice, **dice}
