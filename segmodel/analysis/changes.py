"""How each patient's tumor volume changed between studies, and what speaks against comparing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby, pairwise
from typing import Any

import pyarrow as pa

from segmodel.analysis.studies import Study
from segmodel.core import schema
from segmodel.core.geometry import Spacing

DAYS_PER_MONTH = 30.44
SPACING_TOLERANCE = 0.01
"""Relative difference from which on two spacings are others."""
NEXT, FIRST_TO_LAST = "next", "first to last"
"""Values of `interval`."""


@dataclass(frozen=True)
class StudyVolume:
    """The tumor volume of one series, and what a comparison with another one has to know."""

    patient_id: str
    series_id: str | None
    study: Study
    volume_ml: float | None
    volume_note: str | None
    spacing: Spacing | None
    """None where it is unknown, or differs from slice to slice."""
    seen_in_training: str | None


def changes(volumes: Iterable[StudyVolume]) -> pa.Table:
    """`schema.CHANGES`: each patient's intervals from study to study, and from first to last.

    Series without a date are left out. Several series of one date are one study without a volume.
    """
    dated = sorted(
        ((one.study.date, one) for one in volumes if one.study.date is not None),
        key=lambda each: (each[1].patient_id, each[0], each[1].series_id or ""),
    )
    rows = []
    for _, of_patient in groupby(dated, key=lambda each: each[1].patient_id):
        by_date = groupby(of_patient, key=lambda each: each[0])
        visits = [_Visit(day, [one for _, one in same]) for day, same in by_date]
        rows += [_row(NEXT, *pair) for pair in pairwise(visits)]
        if len(visits) > 2:
            rows.append(_row(FIRST_TO_LAST, visits[0], visits[-1]))
    return pa.Table.from_pylist(rows, schema=schema.CHANGES)


@dataclass(frozen=True)
class _Visit:
    """A patient's series of one date."""

    date: date
    series: Sequence[StudyVolume]

    @property
    def only(self) -> StudyVolume | None:
        """Its series, if it is one."""
        return self.series[0] if len(self.series) == 1 else None

    @property
    def volume_ml(self) -> float | None:
        """None if it is unknown, or several series have one."""
        return None if self.only is None else self.only.volume_ml

    @property
    def note(self) -> str | None:
        """What is wrong with the volume."""
        if self.only is not None:
            return self.only.volume_note
        return f"{len(self.series)} series (series.csv has the volume of each)"


def _row(interval: str, first: _Visit, second: _Visit) -> dict[str, Any]:
    days = (second.date - first.date).days
    before, after = first.volume_ml, second.volume_ml
    difference = None if before is None or after is None else after - before
    return {
        "patient_id": first.series[0].patient_id,
        "interval": interval,
        "first_date": first.date,
        "second_date": second.date,
        "days": days,
        "first_series_id": None if first.only is None else first.only.series_id,
        "second_series_id": None if second.only is None else second.only.series_id,
        "first_volume_ml": before,
        "second_volume_ml": after,
        "difference_ml": difference,
        "difference_percent": 100 * difference / before
        if difference is not None and before
        else None,
        "difference_ml_per_month": None
        if difference is None
        else difference / days * DAYS_PER_MONTH,
        "caution": "; ".join(_cautions(first, second)) or None,
    }


def _cautions(first: _Visit, second: _Visit) -> list[str]:
    """Why the two volumes should not be compared, or only with care."""
    found = [f"{visit.date}: {visit.note}" for visit in (first, second) if visit.note]
    if first.only is not None and second.only is not None:
        found += _other_sequences(first.only.study, second.only.study)
        found += _other_spacing(first.only.spacing, second.only.spacing)
    match first.series[0].seen_in_training:
        case "train":
            found.append("the model was trained on this patient")
        case "validation":
            found.append("this patient helped to choose the model")
    return found


def _other_sequences(first: Study, second: Study) -> list[str]:
    if first.missing is None or second.missing is None:
        return ["whether both have the same sequences is unknown (the archive could not be read)"]
    found = [
        f"{study.date}: no {name}, another sequence stands in for it"
        for study, other in ((first, second), (second, first))
        for name in study.missing or ()
        if name not in (other.missing or ())
    ]
    for name, before in first.descriptions.items():
        after = second.descriptions.get(name, before)
        if before.casefold().split() != after.casefold().split():
            found.append(f"{name} is {before!r}, then {after!r}")
    return found


def _other_spacing(first: Spacing | None, second: Spacing | None) -> list[str]:
    if first is None or second is None:  # their volumes are unknown, and say why
        return []
    lengths = (
        (first.slice_mm, second.slice_mm),
        (first.row_mm, second.row_mm),
        (first.column_mm, second.column_mm),
    )
    if any(
        before is not None
        and after is not None
        and abs(after - before) > SPACING_TOLERANCE * before
        for before, after in lengths
    ):
        return [f"the spacing is {first}, then {second}"]
    return []
