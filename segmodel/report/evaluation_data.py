"""What an evaluation wrote into its folder, read back for its page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segmodel.core.errors import ConfigError
from segmodel.storage import csv_files, store

RUN = "evaluation.json"
_TEXTS = ("segmentation", "patient_id", "series_id", "seen_in_training", "unit")

SHORT_NAMES = {
    "no": "unseen",
    "unknown": "perhaps seen",
    "validation": "validation",
    "train": "learned from",
}
"""Of the groups, by the column seen_in_training."""

Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluationData:
    """The files of an evaluation."""

    archive: str
    segmentations: Mapping[str, str]
    """Folder of each, by its name; the others are compared with the first."""
    tolerance_mm: float
    tables: Sequence[Mapping[str, Any]]
    """`title`, `columns`, `rows` and `note` of each."""
    groups: Mapping[str, Sequence[Mapping[str, Any]]]
    """Those of summary.json, by segmentation; the group that counts most comes first."""
    rows: Sequence[Row]
    """Of patients.csv; numbers are numbers, empty cells None."""
    not_compared: Sequence[Mapping[str, str]]

    @property
    def group_names(self) -> list[str]:
        """Of all segmentations, in the order in which they count."""
        named = {
            tuple(group["seen_in_training"]): group["name"]
            for groups in self.groups.values()
            for group in groups
        }
        order = [("no",), ("unknown",), ("validation",), ("train",)]
        return [named[kinds] for kinds in order if kinds in named]

    def group(self, segmentation: str, name: str) -> Mapping[str, Any] | None:
        """A group of summary.json; None where the segmentation has no such patient."""
        return next((one for one in self.groups[segmentation] if one["name"] == name), None)

    def of_group(self, segmentation: str, name: str) -> list[Row]:
        """The rows of a segmentation's patients in a group."""
        group = self.group(segmentation, name)
        kinds = [] if group is None else group["seen_in_training"]
        return [
            row
            for row in self.rows
            if row["segmentation"] == segmentation and row["seen_in_training"] in kinds
        ]


def read(output: str) -> EvaluationData:
    """Read the files.

    Raises:
        ConfigError: the folder holds no evaluation, or one that is damaged or of an older version.
    """
    try:
        run = json.loads(store.read_bytes(store.join(output, RUN)))
        names = list(run["segmentations"])
        summaries = {
            name: json.loads(store.read_bytes(store.join(output, summary_file(name, names))))
            for name in names
        }
        rows = [_row(row) for row in csv_files.read_csv(store.join(output, "patients.csv"))]
        cases = sum(len(summary["metric_per_case"]) for summary in summaries.values())
        if len(rows) != cases:
            raise ValueError(f"patients.csv has {len(rows)} rows, not {cases}")
        return EvaluationData(
            archive=run["archive"],
            segmentations=run["segmentations"],
            tolerance_mm=run["tolerance_mm"],
            tables=run["tables"],
            groups={name: summary["groups"] for name, summary in summaries.items()},
            rows=rows,
            not_compared=csv_files.read_csv(store.join(output, "not_compared.csv")),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{output} holds no evaluation that can be read ({type(error).__name__}: {error}); "
            "give its jobs.evaluate command again with --overwrite"
        ) from error


def summary_file(name: str, names: Sequence[str]) -> str:
    """The summary of a segmentation, relative to the evaluation's folder."""
    return "summary.json" if len(names) == 1 else f"summaries/{name.replace('/', '_')}.json"


def by_patient(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """A metric of each patient that has it; of several series their mean."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row[metric] is not None:
            found.setdefault(row["patient_id"], []).append(row[metric])
    return {patient: float(np.mean(values)) for patient, values in found.items()}


def volume_pairs(rows: Sequence[Row], unit: str) -> dict[str, tuple[float, float]]:
    """True and predicted volume of each patient whose volume is known in a unit.

    Args:
        rows: of patients.csv.
        unit: `ml` or `voxel`.
    """
    true, predicted = (
        by_patient(rows, f"{kind}_{'ml' if unit == 'ml' else 'voxels'}")
        for kind in ("true", "predicted")
    )
    return {patient: (true[patient], predicted[patient]) for patient in true}


def unit_text(unit: str) -> str:
    """A unit of patients.csv for people."""
    return "voxels" if unit == "voxel" else unit


def _row(row: Mapping[str, str]) -> Row:
    return {
        name: value if name in _TEXTS else (float(value) if value else None)
        for name, value in row.items()
    }
