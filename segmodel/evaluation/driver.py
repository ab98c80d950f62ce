"""Judges one or several segmentations against an archive's masks, series by series on Ray."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray

from segmodel.archive.reader import Archive
from segmodel.core.errors import ArchiveError, ConfigError
from segmodel.core.progress import Progress
from segmodel.evaluation import pairing, paper_table, summary
from segmodel.evaluation.cases import Case, LesionRow, Outcome, evaluate_task
from segmodel.evaluation.metrics import PERCENTILE
from segmodel.evaluation.pairing import Task, Unpaired
from segmodel.runtime import ray_cluster
from segmodel.runtime.tracking import open_tracker, settings_of
from segmodel.settings.jobs import EvaluateConfig
from segmodel.storage import store

SUMMARY, TABLE = "summary.json", "evaluation.md"
_FILES = (SUMMARY, TABLE, "patients.csv", "lesions.csv", "not_compared.csv")


@dataclass(frozen=True)
class Evaluation:
    """What was found."""

    table: str
    """Markdown."""
    cases: list[Case]
    unpaired: dict[str, list[Unpaired]]
    """By the name of the segmentation."""


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
    seen = {run: pairing.check_run(run, archive) for run in names}
    _check_output(config)
    tasks = pairing.plan(archive)
    with open_tracker(config.tracking, "evaluate", config.output) as tracker, ray_cluster.connect():
        tracker.record("parameters", settings_of(config))
        outcomes = {
            name: _evaluate(config, tasks, run, name, seen[run]) for run, name in names.items()
        }
        evaluation = _write(config, outcomes)
        for name, groups in _groups(outcomes).items():
            for group in groups:
                tracker.record(f"evaluation/{name}/{group.name}", _numbers(group))
    return evaluation


def name_runs(runs: Sequence[str]) -> list[str]:
    """The last parts of the folders' names, as many as tell them apart."""
    parts = [run.rstrip("/").split("/") for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(runs)


def _check_output(config: EvaluateConfig) -> None:
    there = [name for name in _FILES if store.exists(store.join(config.output, name))]
    ours = SUMMARY in there and TABLE in there
    if there and not ours:
        raise ConfigError(
            f"{config.output} holds {there[0]}, which no evaluation wrote; give another --output"
        )
    if there and not config.overwrite:
        raise ConfigError(
            f"{config.output} holds an evaluation; give --overwrite to replace it, or another --output"
        )


def _evaluate(
    config: EvaluateConfig, tasks: Sequence[Task], run: str, name: str, seen: dict[str, str]
) -> Outcome:
    progress = Progress(len(tasks), f"parts of {name}")
    found = Outcome([], [], [])
    arguments = (config.archive, run, name, seen, config.tolerance_mm)
    for outcome in _on_ray(tasks, arguments):
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


def _on_ray(tasks: Sequence[Task], arguments: tuple[Any, ...]) -> Iterator[Outcome]:
    """Results in the order in which they come; few tasks wait at a time."""
    archive, run, name, seen, tolerance = arguments
    remote = ray.remote(evaluate_task)
    shared = ray.put(seen)
    left = iter(tasks)
    running = []
    for task in left:
        running.append(remote.remote(archive, task, run, name, shared, tolerance))
        if len(running) >= 2 * ray_cluster.cpus():
            ready, running = ray.wait(running)
            yield from map(ray_cluster.result_of, ready)
    while running:
        ready, running = ray.wait(running)
        yield from map(ray_cluster.result_of, ready)


def _groups(outcomes: dict[str, Outcome]) -> dict[str, Sequence[summary.Group]]:
    return {name: summary.groups_of(outcome.cases) for name, outcome in outcomes.items()}


def _write(config: EvaluateConfig, outcomes: dict[str, Outcome]) -> Evaluation:
    cases = [case for outcome in outcomes.values() for case in outcome.cases]
    if not cases:
        reasons = {found.reason for outcome in outcomes.values() for found in outcome.unpaired}
        raise ArchiveError(
            f"{config.archive}: no annotated series could be compared: {'; '.join(sorted(reasons))}"
        )
    groups, text = _groups(outcomes), definitions(config.tolerance_mm)
    names = list(outcomes)
    compared = {
        name: summary.differences(outcomes[names[0]].cases, outcomes[name].cases)
        for name in names[1:]
    }
    table = paper_table.markdown(groups, compared, text)
    lesions = [row for outcome in outcomes.values() for row in outcome.lesions]
    unpaired = [
        {"segmentation": name, **asdict(row)}
        for name, outcome in outcomes.items()
        for row in outcome.unpaired
    ]
    for name, rows, kind in (
        ("patients.csv", [asdict(case) for case in cases], Case),
        ("lesions.csv", [asdict(row) for row in lesions], LesionRow),
    ):
        store.publish_csv(store.join(config.output, name), rows, list(kind.__dataclass_fields__))
    columns = ["segmentation", *Unpaired.__dataclass_fields__]
    store.publish_csv(store.join(config.output, "not_compared.csv"), unpaired, columns)
    summaries = {
        name: summary.summary_json(outcome.cases, groups[name], text)
        for name, outcome in outcomes.items()
    }
    for name, values in summaries.items():
        file = SUMMARY if len(names) == 1 else f"{name.replace('/', '_')}/{SUMMARY}"
        store.publish_json(store.join(config.output, file), values)
    if len(names) > 1:
        differences = {
            name: {
                metric: {kind: asdict(found) for kind, found in kinds.items()}
                for metric, kinds in metrics.items()
            }
            for name, metrics in compared.items()
        }
        overview = {"first": names[0], "segmentations": names, "minus_first": differences}
        store.publish_json(store.join(config.output, SUMMARY), overview)
    store.publish(store.join(config.output, TABLE), table.encode())
    return Evaluation(table, cases, {name: outcome.unpaired for name, outcome in outcomes.items()})


def _numbers(group: summary.Group) -> dict[str, Any]:
    dice = {f"dice_{key}": value for key, value in asdict(group.tumor_patients["dice"]).items()}
    return {"patients": group.patients, "pooled_dice": group.pooled_dice, **dice}


def definitions(tolerance: float) -> str:
    """What the numbers mean, in a paragraph that goes with every table."""
    return (
        f"Means are over patients, with the 95 % percentile bootstrap interval (patients resampled). "
        f"HD95: the larger of the two directed {PERCENTILE:.0f}th percentiles, ASSD: the mean distance, "
        f"NSD: the share of both surfaces within {tolerance:g} mm (voxels where the spacing is unknown), "
        "all weighted by surface area (library surface-distance). Both masks empty: Dice 1, no distances; "
        "one empty: Dice and NSD 0, no distances. A slice without a predicted mask counts as without tumor. "
        "Lesions are 26-connected; one is found if a single voxel of it is."
    )
