"""The results of an evaluation as tables, ready for a paper."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from segmodel.evaluation.statistics import Distribution, PairedDifference
from segmodel.evaluation.summary import GROUPS, METRICS, Group

TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "hd95": "HD95",
    "average_surface_distance": "ASSD",
    "nsd": "NSD",
    "volume_error_ml": "Volume error, ml",
    "absolute_volume_error_ml": "Absolute volume error, ml",
    "relative_volume_error": "Relative volume error",
}


NOTHING = "n/a"
_MIXED = (
    "No mean of HD95, ASSD and NSD: some are in mm, others in voxels, as the spacing is unknown or "
    "slices are missing."
)
Cell = Callable[[Group], str]


@dataclass(frozen=True)
class Table:
    """A table for people."""

    title: str
    columns: tuple[str, ...]
    """The first names the rows."""
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """Below the rows, or in place of them."""


def tables(
    by_segmentation: Mapping[str, Sequence[Group]],
    compared: Mapping[str, Mapping[str, Mapping[str, PairedDifference]]],
) -> list[Table]:
    """A table for each group of patients, one column a segmentation, and the paired differences.

    Args:
        by_segmentation: the groups of each segmentation; others are compared with the first.
        compared: from `summary.differences`, by the name of the other segmentation.
    """
    made = []
    for title in GROUPS:
        found = {
            name: group
            for name, groups in by_segmentation.items()
            for group in groups
            if group.name == title
        }
        if found:
            made.append(_table(title, found))
    first, groups = next(iter(by_segmentation.items()))
    unit = groups[0].distance_unit if groups else ""  # the unseen, where differences have patients
    return made + [_differences(first, name, metrics, unit) for name, metrics in compared.items()]


def markdown(made: Sequence[Table], definitions: str) -> str:
    """Tables as Markdown.

    Args:
        made: from `tables`.
        definitions: what the numbers mean, printed below.
    """
    lines: list[str] = []
    for table in made:
        lines += [f"## {table.title}", ""]
        if table.rows:
            lines += [*pipe_table((table.columns, *table.rows)), ""]
        if table.note:
            lines += [table.note, ""]
    return "\n".join([*lines, definitions, ""])


def pipe_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns are also below each other in plain text.

    Args:
        rows: cells; the first row names the columns. All columns but the first are aligned right.
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [
        f"| {' | '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])} |"
        for row in (cells[0], rule, *cells[1:])
    ]


def _table(title: str, groups: Mapping[str, Group]) -> Table:
    any_group = next(iter(groups.values()))
    rows = [
        (name, *(cell(group) for group in groups.values()))
        for name, cell in _rows(any_group.distance_unit, any_group.volume_unit)
    ]
    known = tuple(row for row in rows if set(row[1:]) != {NOTHING})
    mixed = any(group.distance_unit == "mixed" for group in groups.values())
    return Table(f"Patients: {title}", ("", *groups), known, _MIXED if mixed else "")


def _rows(unit: str, volume_unit: str) -> list[tuple[str, Cell]]:
    rows: list[tuple[str, Cell]] = [
        ("Patients (with tumor)", lambda group: f"{group.patients} ({group.with_tumor})"),
        ("Pooled Dice", lambda group: number(group.pooled_dice)),
        ("Dice, all patients", lambda group: mean_and_interval(group.all_patients["dice"])),
        (
            "Dice, median (quartiles), patients with tumor",
            lambda group: _quartiles(group.tumor_patients["dice"]),
        ),
    ]
    rows += [(_title(metric, unit), _mean_cell(metric)) for metric in METRICS]
    return [
        *rows,
        ("Lesions found", lambda group: f"{group.lesions_found} of {group.lesions}"),
        ("Lesions invented", lambda group: str(group.lesions_invented)),
        ("No distance (one mask empty)", lambda group: str(group.no_distance)),
        ("Lin's concordance of volumes", lambda group: number(group.volumes.concordance)),
        (f"Volume bias (limits of agreement), {volume_unit}", _limits),
    ]


def _title(metric: str, unit: str) -> str:
    return f"{_with_unit(metric, unit)}, patients with tumor"


def _with_unit(metric: str, unit: str) -> str:
    in_unit = f" ({unit})" if metric in ("hd95", "average_surface_distance") else ""
    return f"{TITLES[metric]}{in_unit}"


def _mean_cell(metric: str) -> Cell:
    return lambda group: mean_and_interval(group.tumor_patients[metric])


def _limits(group: Group) -> str:
    found = group.volumes
    if found.bias is None:
        return NOTHING
    if found.lower_limit is None or found.upper_limit is None:
        return number(found.bias)
    return _with_range(found.bias, found.lower_limit, found.upper_limit)


def mean_and_interval(found: Distribution | PairedDifference) -> str:
    """Mean and its 95 % interval, for people."""
    if found.mean is None or found.low is None or found.high is None:
        return number(found.mean)
    return _with_range(found.mean, found.low, found.high)


def _quartiles(found: Distribution) -> str:
    if found.median is None or found.first_quartile is None or found.third_quartile is None:
        return NOTHING
    return _with_range(found.median, found.first_quartile, found.third_quartile)


def _with_range(value: float, low: float, high: float) -> str:
    """A value and the range around it, all with the decimals of the largest."""
    decimals = min(map(_decimals, (value, low, high)))
    value_text, low_text, high_text = (f"{each:z,.{decimals}f}" for each in (value, low, high))
    return f"{value_text} ({low_text} to {high_text})"


def number(value: float | None) -> str:
    """Three decimals below 10, one below 1,000, none above; `n/a` for None."""
    if value is None:
        return NOTHING
    return f"{value:,.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    return 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0


def _differences(
    first: str, second: str, metrics: Mapping[str, Mapping[str, PairedDifference]], unit: str
) -> Table:
    rows = []
    for metric, kinds in metrics.items():
        found = kinds["tumor"]
        if found.count:
            mean = mean_and_interval(found)
            p = NOTHING if found.wilcoxon_p is None else f"{found.wilcoxon_p:.2g}"
            rows.append((_with_unit(metric, unit), str(found.count), mean, p))
    return Table(
        f"{second} minus {first}, patients with tumor that neither model has seen",
        ("", "Patients", "Mean difference (95 % interval)", "Wilcoxon p"),
        tuple(rows),
        "" if rows else "There is no patient that neither model has seen.",
    )
