"""The page of an evaluation: tables for a paper, figures, the best and the worst patients."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from segmodel.core.rounding import rounded
from segmodel.report import (
    embed,
    evaluation_data,
    evaluation_figures,
    evaluation_patients,
    page,
)
from segmodel.report.evaluation_data import EvaluationData, Row, unit_text
from segmodel.report.evaluation_figures import Agreement
from segmodel.report.page import REPORT, number
from segmodel.storage import store

TABLE_ROWS = 10_000
"""Rows of the page's table; all are in patients.csv."""
_SHORT = {
    "no": "unseen",
    "unknown": "perhaps seen",
    "validation": "validation",
    "train": "learned from",
}
_TITLES = {
    "no": "Unseen patients",
    "unknown": "Patients that were perhaps seen",
    "validation": "Validation patients, who chose the epoch",
    "train": "Patients that the model learned from",
}
"""By the column seen_in_training."""


@dataclass(frozen=True)
class GroupPart:
    """The tables and figures of patients that the models knew equally well."""

    title: str
    short: str
    table: Mapping[str, Any]
    dice: tuple[Markup, str] | None
    """Dice by patient; None without tumor."""
    volumes: list[tuple[Markup, str]]


def write(output: str, pictures: bool = True) -> None:
    """Publish the page in the folder of an evaluation.

    Without the archive or a run folder, the page has no pictures and says so.

    Args:
        output: the folder.
        pictures: whether the page shows slices of patients.

    Raises:
        ConfigError: it holds no evaluation.
    """
    store.publish(store.join(output, REPORT), build(output, pictures).encode())


def build(output: str, pictures: bool) -> str:
    """The page, as HTML."""
    data = evaluation_data.read(output)
    slices, missing = evaluation_patients.open_slices(data) if pictures else (None, "")
    shown = evaluation_patients.choose_patients(data, slices)
    several = len(data.segmentations) > 1
    rows = sorted(data.rows, key=lambda row: (row["dice"], row["patient_id"]))
    columns = _columns(data)
    group_tables = {table["title"].removeprefix("Patients: "): table for table in data.tables}
    return page.render(
        "evaluation.html",
        title=output.rstrip("/").rsplit("/", 1)[-1],
        kind="Evaluation",
        output=output,
        data=data,
        several=several,
        tiles=_tiles(data),
        notes=_notes(data, missing, pictures),
        overview=_overview(data),
        groups=[_group(data, name, group_tables[name]) for name in data.group_names],
        differences=[table for table in data.tables if not table["title"].startswith("Patients")],
        shown=shown,
        sides=any(picture.sides for patient in shown for picture in patient.pictures),
        pictured=any(patient.pictures for patient in shown),
        columns=_with_unit(columns, data),
        rows=[[_CELLS[column[0]](row) for column in columns] for row in rows[:TABLE_ROWS]],
        all_rows=len(rows),
        table_rows=TABLE_ROWS,
        links={patient.patient_id: f"#{patient.anchor}" for patient in shown},
        sources=[
            ("Archive", data.archive),
            *data.segmentations.items(),
            ("Tolerance of NSD", f"{data.tolerance_mm:g} mm"),
        ],
    )


def _tiles(data: EvaluationData) -> list[tuple[str, ...]]:
    name = data.group_names[0]
    tiles: list[tuple[str, ...]] = []
    several = len(data.segmentations) > 1
    for segmentation in data.segmentations:
        group = data.group(segmentation, name)
        if group is None:
            continue
        of = f", {segmentation}" if several else ""
        if not tiles:
            tiles.append((number(group["patients"]), f"patients, {_short_name(group)}"))
            tiles.append((number(group["with_tumor"]), "of them with tumor"))
        tumor = group["tumor_patients"]
        tiles.append((_value(tumor["dice"]["mean"], 3), f"mean Dice{of}"))
        if not several:
            tiles.append((_value(tumor["nsd"]["mean"], 2), "mean NSD"))
            unit = unit_text(group["distance_unit"])
            tiles.append((_value(tumor["hd95"]["median"], 1), f"median HD95, {unit}"))
            found = f"{number(group['lesions_found'])} / {number(group['lesions'])}"
            tiles.append((found, "lesions found"))
            tiles.append(
                (_value(group["volumes"]["concordance"], 3), "concordance of volumes (Lin)")
            )
    return tiles


def _value(value: float | None, digits: int) -> str:
    return number(value, digits)


def _short_name(group: Mapping[str, Any]) -> str:
    return _SHORT[group["seen_in_training"][0]]


def _notes(data: EvaluationData, missing: str, pictures: bool) -> list[tuple[str, str]]:
    """(text, level) of what a reader must know before any figure."""
    notes = []
    if data.group_names[0] != "unseen":
        notes.append(
            (
                "The model has seen every patient in training or validation, or may have: these "
                "figures say nothing about new patients.",
                "warn",
            )
        )
    voxels = sum(row["unit"] == "voxel" for row in data.rows)
    if voxels:
        notes.append(
            (
                f"Distances of {number(voxels)} of {number(len(data.rows))} cases are in voxels, "
                "because their spacing is unknown or slices are missing.",
                "warn",
            )
        )
    if data.not_compared:
        notes.append(
            (
                f"{number(len(data.not_compared))} annotated series could not be compared: "
                "see below.",
                "warn",
            )
        )
    empty = sum((row["true_voxels"] > 0) != (row["predicted_voxels"] > 0) for row in data.rows)
    if empty:
        notes.append(
            (f"{number(empty)} cases have no distance, because one of the masks is empty.", "info")
        )
    if missing:
        notes.append((missing, "warn"))
    if not pictures:
        notes.append(("This page was written without pictures of patients.", "info"))
    return notes


def _overview(data: EvaluationData) -> list[tuple[Markup, str]]:
    """Dice, NSD and HD95 of all groups and segmentations beside each other."""
    figures = []
    units = {row["unit"] for row in data.rows}
    distance = f"HD95 ({unit_text(units.pop())})" if len(units) == 1 else None
    for metric, name, top in (("dice", "Dice", 1.0), ("nsd", "NSD", 1.0), ("hd95", distance, None)):
        columns = {}
        for group in data.group_names:
            for segmentation in data.segmentations:
                rows = [row for row in data.of_group(segmentation, group) if row["true_voxels"]]
                values = list(evaluation_data.by_patient(rows, metric).values())
                if values:
                    short = _SHORT[rows[0]["seen_in_training"]]
                    columns[short, segmentation] = values
        if columns and name:
            caption = f"{name} of patients with tumor, by what the model knew of them."
            figures.append((evaluation_figures.spread(columns, name, caption, top), caption))
    return figures


def _group(data: EvaluationData, name: str, table: Mapping[str, Any]) -> GroupPart:
    figures: list[tuple[Markup, str]] = []
    dice = {}
    kinds: list[str] = []
    several = len(data.segmentations) > 1
    for segmentation, color in zip(data.segmentations, itertools.cycle(embed.COLORS), strict=False):
        group = data.group(segmentation, name)
        rows = data.of_group(segmentation, name)
        found = evaluation_data.by_patient([row for row in rows if row["true_voxels"]], "dice")
        if found:
            dice[segmentation] = found
        if group is None:
            continue
        kinds = group["seen_in_training"]
        unit = group["volume_unit"]
        pairs = list(evaluation_data.volume_pairs(rows, unit).values())
        if pairs:
            of = f"{segmentation}: " if several else ""
            figures += _volume_figures(pairs, group, of, color)
    by_patient = None
    if dice:
        caption = "Dice of each patient with tumor. Dashed: mean."
        by_patient = (evaluation_figures.dice_by_patient(dice, caption), caption)
    return GroupPart(_TITLES[kinds[0]], _SHORT[kinds[0]], table, by_patient, figures)


def _volume_figures(
    pairs: list[tuple[float, float]], group: Mapping[str, Any], of: str, color: str
) -> list[tuple[Markup, str]]:
    agreement, unit = group["volumes"], unit_text(group["volume_unit"])
    scatter = f"{of}true against predicted volume."
    if agreement["concordance"] is not None:
        scatter += f" Lin's concordance {agreement['concordance']:.3f}."
    limits = f"{of}Bland and Altman: bias and limits of agreement (± 1.96 standard deviations)."
    values = Agreement(agreement["bias"], agreement["lower_limit"], agreement["upper_limit"])
    scatter, limits = (text if of else text[0].upper() + text[1:] for text in (scatter, limits))
    drawn = [(evaluation_figures.volumes(pairs, unit, scatter, color), scatter)]
    if len(pairs) > 1:
        figure = evaluation_figures.bland_altman(pairs, values, unit, limits, color)
        drawn.append((figure, limits))
    return drawn


def _columns(data: EvaluationData) -> list[tuple[str, ...]]:
    """The columns that have something to say; `_CELLS` has what stands in each."""
    left_out = set()
    if all(row["series_id"] == row["patient_id"] for row in data.rows):
        left_out.add("Series")
    if len(data.segmentations) == 1:
        left_out.add("Segmentation")
    known = {row["true_ml"] is not None for row in data.rows}
    if known == {True}:
        left_out |= {"True voxels", "Predicted voxels"}
    elif known == {False}:
        left_out |= {"True ml", "Predicted ml"}
    if len({row["unit"] for row in data.rows}) == 1:
        left_out.add("Unit")
    return [column for column in _COLUMNS if column[0] not in left_out]


def _with_unit(columns: list[tuple[str, ...]], data: EvaluationData) -> list[tuple[str, ...]]:
    """The columns, HD95 with its unit where all cases have the same."""
    units = {row["unit"] for row in data.rows}
    title = f"HD95 ({unit_text(units.pop())})" if len(units) == 1 else "HD95"
    return [(title, *column[1:]) if column[0] == "HD95" else column for column in columns]


def _ml(volume: float | None) -> str:
    return number(None) if volume is None else f"{rounded('_ml', volume):,}"


_COLUMNS: list[tuple[str, ...]] = [
    ("Patient", "text"),
    ("Series", "text"),
    ("Segmentation", "text"),
    ("Group", "text", "what the model knew of the patient"),
    ("Dice", "number"),
    ("HD95", "number", "95th percentile of the distance between surfaces"),
    ("Unit", "text", "of HD95"),
    ("NSD", "number", "share of both surfaces within the tolerance"),
    ("Precision", "number"),
    ("Recall", "number"),
    ("True ml", "number"),
    ("Predicted ml", "number"),
    ("True voxels", "number"),
    ("Predicted voxels", "number"),
    ("Lesions", "number", "connected pieces of the truth"),
    ("Found", "number", "of the lesions"),
    ("Invented", "number", "pieces of the prediction that touch no tumor"),
]
_CELLS: dict[str, Callable[[Row], str]] = {
    "Patient": lambda row: str(row["patient_id"]),
    "Series": lambda row: str(row["series_id"]),
    "Segmentation": lambda row: str(row["segmentation"]),
    "Group": lambda row: _SHORT[row["seen_in_training"]],
    "Dice": lambda row: number(row["dice"], 3),
    "HD95": lambda row: number(row["hd95"], 1),
    "Unit": lambda row: str(row["unit"]),
    "NSD": lambda row: number(row["nsd"], 3),
    "Precision": lambda row: number(row["precision"], 3),
    "Recall": lambda row: number(row["recall"], 3),
    "True ml": lambda row: _ml(row["true_ml"]),
    "Predicted ml": lambda row: _ml(row["predicted_ml"]),
    "True voxels": lambda row: number(row["true_voxels"]),
    "Predicted voxels": lambda row: number(row["predicted_voxels"]),
    "Lesions": lambda row: number(row["lesions"]),
    "Found": lambda row: number(row["lesions_found"]),
    "Invented": lambda row: number(row["lesions_invented"]),
}
