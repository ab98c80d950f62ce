"""The page of an evaluation: tables for a paper, figures, the best and the worst patients."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from segmodel.report import (
    embed,
    evaluation_data,
    evaluation_figures,
    evaluation_patients,
    evaluation_table,
    page,
)
from segmodel.report.evaluation_data import SHORT_NAMES, EvaluationData, unit_text
from segmodel.report.evaluation_figures import Agreement
from segmodel.report.page import REPORT, number
from segmodel.storage import store

TABLE_ROWS = 10_000
"""Rows of the page's table; all are in patients.csv."""
_TITLES = {
    "no": "Unseen patients",
    "unknown": "Patients that the model may have seen",
    "validation": "Validation patients, used to choose the epoch",
    "train": "Patients that the model was trained on",
}
"""By the column seen_in_training."""


@dataclass(frozen=True)
class GroupPart:
    """The tables and figures of one group of patients: unseen, validation or train."""

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
    columns = evaluation_table.columns_of(data)
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
        ranked_by=evaluation_patients.ranked_by(data),
        sides=any(picture.sides for patient in shown for picture in patient.pictures),
        pictured=any(patient.pictures for patient in shown),
        columns=evaluation_table.with_unit(columns, data),
        rows=evaluation_table.cells(columns, rows[:TABLE_ROWS]),
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
    return SHORT_NAMES[group["seen_in_training"][0]]


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
                    short = SHORT_NAMES[rows[0]["seen_in_training"]]
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
    return GroupPart(_TITLES[kinds[0]], SHORT_NAMES[kinds[0]], table, by_patient, figures)


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
