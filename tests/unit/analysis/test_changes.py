from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from segmodel.analysis.changes import StudyVolume, changes
from segmodel.analysis.studies import Study
from segmodel.core.geometry import Spacing

DAYS = [date(2020, 1, 1), date(2020, 1, 31), date(2020, 12, 31)]  # 30 and 335 days apart
SPACING = Spacing(slice_mm=5.0, row_mm=1.0, column_mm=1.0)


def study(
    number: int,
    volume_ml: float | None,
    *,
    patient: str = "A",
    day: date | None = None,
    missing: tuple[str, ...] | None = (),
    descriptions: dict[str, str] | None = None,
    **more: Any,
) -> StudyVolume:
    """Study `number` of a patient, on the day of that number."""
    plain: dict[str, Any] = {"volume_note": None, "spacing": SPACING, "seen_in_training": "no"}
    of = Study(day or DAYS[number], missing, descriptions or {})
    return StudyVolume(
        patient_id=patient,
        series_id=f"S{number}",
        study=of,
        volume_ml=volume_ml,
        **(plain | more),
    )


def caution(first: StudyVolume, second: StudyVolume) -> str | None:
    (row,) = changes([first, second]).to_pylist()
    text: str | None = row["caution"]
    return text


def test_a_change_is_given_in_ml_in_percent_and_by_month() -> None:
    (row,) = changes([study(0, 40.0), study(1, 50.0)]).to_pylist()
    assert row == {
        "patient_id": "A",
        "interval": "next",
        "first_date": DAYS[0],
        "second_date": DAYS[1],
        "days": 30,
        "first_series_id": "S0",
        "second_series_id": "S1",
        "first_volume_ml": 40.0,
        "second_volume_ml": 50.0,
        "difference_ml": 10.0,
        "difference_percent": 25.0,
        "difference_ml_per_month": pytest.approx(10 / 30 * 30.44),
        "caution": None,
    }


def test_three_studies_give_each_interval_and_that_from_the_first_to_the_last() -> None:
    table = changes([study(2, 30.0), study(0, 40.0), study(1, 50.0)])
    assert table["interval"].to_pylist() == ["next", "next", "first to last"]
    assert table["days"].to_pylist() == [30, 335, 365]
    assert table["difference_ml"].to_pylist() == [10.0, -20.0, -10.0]
    assert table["difference_percent"].to_pylist() == [25.0, -40.0, -25.0]


def test_patients_are_not_compared_with_each_other() -> None:
    assert changes([study(0, 1.0, patient="A"), study(1, 2.0, patient="B")]).num_rows == 0


def test_without_dates_there_is_nothing_to_compare() -> None:
    undated = [
        StudyVolume("A", name, Study(None, (), {}), 1.0, None, SPACING, "no") for name in "12"
    ]
    assert changes(undated).num_rows == 0
    assert isinstance(changes([]), pa.Table)


def test_a_tumor_that_was_not_there_before_has_no_change_in_percent() -> None:
    (row,) = changes([study(0, 0.0), study(1, 3.0)]).to_pylist()
    assert (row["difference_ml"], row["difference_percent"]) == (3.0, None)


def test_a_study_without_a_volume_has_its_row_and_the_reason() -> None:
    (row,) = changes(
        [study(0, None, volume_note="2 missing slices", spacing=None), study(1, 3.0)]
    ).to_pylist()
    assert (row["difference_ml"], row["difference_ml_per_month"]) == (None, None)
    assert row["second_volume_ml"] == 3.0
    assert row["caution"] == "2020-01-01: 2 missing slices"


def test_two_series_of_one_day_are_a_study_without_a_volume() -> None:
    (row,) = changes([study(0, 1.0), study(1, 2.0, day=DAYS[0]), study(2, 3.0)]).to_pylist()
    assert (row["first_series_id"], row["first_volume_ml"], row["difference_ml"]) == (None,) * 3
    assert row["caution"] == "2020-01-01: 2 series (series.csv has the volume of each)"


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (
            {"missing": ("post-contrast",)},
            {},
            "2020-01-01: no post-contrast, another sequence stands in for it",
        ),
        ({"missing": ("post-contrast",)}, {"missing": ("post-contrast",)}, None),
        (
            {},
            {"missing": None},
            "whether both have the same sequences is unknown (the archive could not be read)",
        ),
        (
            {"descriptions": {"FLAIR": "AX FLAIR"}},
            {"descriptions": {"FLAIR": "SAG 3D FLAIR"}},
            "FLAIR is 'AX FLAIR', then 'SAG 3D FLAIR'",
        ),
        (
            {"descriptions": {"FLAIR": "AX  FLAIR"}},
            {"descriptions": {"FLAIR": "ax flair"}},
            None,
        ),
        (
            {},
            {"spacing": Spacing(slice_mm=1.0, row_mm=1.0, column_mm=1.0)},
            "the spacing is 5 x 1 x 1 mm, then 1 x 1 x 1 mm",
        ),
        ({}, {"spacing": Spacing(slice_mm=5.04, row_mm=1.0, column_mm=1.0)}, None),
        (
            {"seen_in_training": "train"},
            {"seen_in_training": "train"},
            "the model was trained on this patient",
        ),
        (
            {"volume_note": "slices of several sizes; therefore not postprocessed"},
            {},
            "2020-01-01: slices of several sizes; therefore not postprocessed",
        ),
    ],
)
def test_what_would_mislead_is_said(
    first: dict[str, Any], second: dict[str, Any], text: str | None
) -> None:
    assert caution(study(0, 1.0, **first), study(1, 2.0, **second)) == text
