"""What an evaluation writes into its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from segmodel.evaluation import paper_table, summary
from segmodel.evaluation.cases import Case, LesionRow, Outcome
from segmodel.evaluation.metrics import PERCENTILE
from segmodel.evaluation.pairing import Unpaired
from segmodel.evaluation.paper_table import Table
from segmodel.evaluation.statistics import PairedDifference
from segmodel.evaluation.summary import Group
from segmodel.report.evaluation_data import summary_file
from segmodel.report.page import REPORT
from segmodel.runtime.tracking import TRACKED
from segmodel.settings.evaluate import EvaluateConfig
from segmodel.storage import csv_files, store
from segmodel.storage.output_folder import OutputLayout

SUMMARY, TABLE, SUMMARIES = "summary.json", "evaluation.md", "summaries"
PATIENTS, LESIONS, NOT_COMPARED = "patients.csv", "lesions.csv", "not_compared.csv"
DIFFERENCES = "differences.json"

LAYOUT = OutputLayout(
    run_file="evaluation.json",
    key="segmentations",
    results=(
        SUMMARY,
        TABLE,
        SUMMARIES,
        PATIENTS,
        LESIONS,
        NOT_COMPARED,
        DIFFERENCES,
        REPORT,
        TRACKED,
    ),
)


@dataclass(frozen=True)
class Evaluation:
    """What was found; each by the name of the segmentation."""

    tables: Sequence[Table]
    table: str
    """All of them as Markdown."""
    outcomes: Mapping[str, Outcome]
    groups: Mapping[str, Sequence[Group]]
    differences: Mapping[str, Mapping[str, Mapping[str, PairedDifference]]]
    """Differences of every other segmentation from the first: by metric, then `all` or `tumor`."""


def write(config: EvaluateConfig, outcomes: Mapping[str, Outcome]) -> Evaluation:
    """Summarise outcomes and write all tables."""
    output, text = config.output, definitions(config.tolerance_mm)
    names = list(outcomes)
    first = outcomes[names[0]].cases
    evaluation = _summarise(outcomes, first, text)
    run = {
        "archive": config.archive,
        "segmentations": dict(zip(names, config.segmentations, strict=True)),
        "tolerance_mm": config.tolerance_mm,
        "definitions": text,
        "tables": [asdict(table) for table in evaluation.tables],
    }
    store.publish_json(store.join(output, LAYOUT.run_file), run)
    LAYOUT.remove_results(output)
    _write_rows(output, outcomes)
    for name, outcome in outcomes.items():
        values = summary.summary_json(outcome.cases, evaluation.groups[name], text)
        file = summary_file(name, names)
        store.publish_json(store.join(output, file), values)
    if evaluation.differences:
        differences = {
            name: {
                metric: {kind: asdict(found) for kind, found in kinds.items()}
                for metric, kinds in metrics.items()
            }
            for name, metrics in evaluation.differences.items()
        }
        found = {"first": names[0], "minus_first": differences}
        store.publish_json(store.join(output, DIFFERENCES), found)
    store.publish(store.join(output, TABLE), evaluation.table.encode())
    return evaluation


def _summarise(outcomes: Mapping[str, Outcome], first: Sequence[Case], text: str) -> Evaluation:
    groups = {name: summary.groups_of(outcome.cases) for name, outcome in outcomes.items()}
    differences = {
        name: summary.differences(first, outcome.cases)
        for name, outcome in list(outcomes.items())[1:]
    }
    tables = paper_table.tables(groups, differences)
    table = paper_table.markdown(tables, "\n\n".join([*_left_out(outcomes), text]))
    return Evaluation(tables, table, outcomes, groups, differences)


def _left_out(outcomes: Mapping[str, Outcome]) -> list[str]:
    """A sentence for each segmentation with series that are in no mean."""
    return [
        f"{len(outcome.unpaired)} annotated series of {name} could not be compared and are in no "
        f"number above: see {NOT_COMPARED}."
        for name, outcome in outcomes.items()
        if outcome.unpaired
    ]


def _write_rows(output: str, outcomes: Mapping[str, Outcome]) -> None:
    cases = [asdict(row) for outcome in outcomes.values() for row in outcome.cases]
    lesions = [asdict(row) for outcome in outcomes.values() for row in outcome.lesions]
    unpaired = [
        {"segmentation": name, **asdict(row)}
        for name, outcome in outcomes.items()
        for row in outcome.unpaired
    ]
    for name, rows, columns in (
        (PATIENTS, cases, [field.name for field in fields(Case)]),
        (LESIONS, lesions, [field.name for field in fields(LesionRow)]),
        (NOT_COMPARED, unpaired, ["segmentation", *(field.name for field in fields(Unpaired))]),
    ):
        csv_files.publish_csv(store.join(output, name), rows, columns)


def definitions(tolerance: float) -> str:
    """What the numbers mean, in a paragraph that goes with every table."""
    return (
        "Means are over patients, with the 95 % percentile bootstrap interval (patients are "
        f"resampled). HD95 is the larger of the two directed {PERCENTILE:.0f}th percentiles of the "
        "distance between surfaces, ASSD their mean distance, NSD the share of both surfaces "
        f"within {tolerance:g} mm of the other (voxels where the spacing is unknown). All three "
        "are weighted by surface area (library surface-distance). If both masks are empty, Dice "
        "is 1 and there are no distances; if one is empty, Dice and NSD are 0 and there are no "
        "distances. A slice without a predicted mask counts as without tumor. Lesions are "
        "26-connected; a lesion is found if the prediction has at least one voxel in it."
    )
