"""The table of all cases on an evaluation's page."""

from collections.abc import Callable, Sequence

from segmodel.core.rounding import rounded
from segmodel.report.evaluation_data import SHORT_NAMES, EvaluationData, Row, unit_text
from segmodel.report.page import number

Column = tuple[str, ...]
"""As `table` of parts.html takes it: title, kind and perhaps an explanation."""


def columns_of(data: EvaluationData) -> list[Column]:
    """The columns that have values; `_CELLS` has the content of each."""
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


def with_unit(columns: list[Column], data: EvaluationData) -> list[Column]:
    """The columns, HD95 with its unit where all cases have the same."""
    units = {row["unit"] for row in data.rows}
    title = f"HD95 ({unit_text(units.pop())})" if len(units) == 1 else "HD95"
    return [(title, *column[1:]) if column[0] == "HD95" else column for column in columns]


def cells(columns: Sequence[Column], rows: Sequence[Row]) -> list[list[str]]:
    """What stands in the columns of `columns_of`, a list for each row."""
    return [[_CELLS[column[0]](row) for column in columns] for row in rows]


def _ml(volume: float | None) -> str:
    return number(None) if volume is None else f"{rounded('_ml', volume):,}"


_COLUMNS: list[Column] = [
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
    "Group": lambda row: SHORT_NAMES[row["seen_in_training"]],
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
