import itertools
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from segmodel.analysis import series_counts, series_shapes, series_volume
from segmodel.analysis.series_volume import Treatment, with_shapes
from segmodel.analysis.studies import Studies, Study
from segmodel.analysis.volume_tables import tables
from segmodel.core import schema
from tests.support.segmented import mask_row, only, quarantine_row


def blank(*indices: int) -> list[dict[str, Any]]:
    return [quarantine_row(index, stage="blank") for index in indices]


def both_tables(
    segmented: list[dict],
    quarantined: list[dict],
    training: set[str],
    studies: Studies | None = None,
) -> tuple[pa.Table, pa.Table]:
    """The table of series and that of patients, without shapes."""
    lost = pa.Table.from_pylist(quarantined, schema=schema.QUARANTINE)
    counts = series_counts.count_series(
        [pa.RecordBatch.from_pylist([row], schema=series_counts.SLICES) for row in segmented], lost
    )
    series = series_volume.count(counts, lost)
    measured = with_shapes(series, [Treatment()] * len(series), series_shapes.SHAPES.empty_table())
    found = tables(measured, lambda patient: "train" if patient in training else "no", studies)
    return found.series, found.volumes


def volumes(segmented: list[dict], quarantined: list[dict], training: set[str]) -> pa.Table:
    return both_tables(segmented, quarantined, training)[1]


def test_volume_is_voxels_times_the_volume_of_one() -> None:
    row = only(volumes([mask_row(1), mask_row(2, voxels=0), mask_row(3)], [], set()))
    assert row["tumor_voxels"] == 20
    assert row["slices_with_tumor"] == 2
    assert row["tumor_volume_mm3"] == pytest.approx(200.0)  # 20 voxels of 5 x 1 x 2 mm
    assert row["tumor_volume_ml"] == pytest.approx(0.2)
    assert row["volume_note"] is None


def test_unknown_spacing_gives_no_volume_and_says_which() -> None:
    row = only(volumes([mask_row(1, spacing=(None, 1.0, 1.0))], [], set()))
    assert row["tumor_voxels"] == 10
    assert row["tumor_volume_mm3"] is None
    assert row["tumor_volume_ml"] is None
    assert row["volume_note"] == "unknown slice spacing"


def test_a_missing_slice_is_counted_and_gives_no_volume() -> None:
    row = only(volumes([mask_row(1), mask_row(3)], [], set()))
    assert (row["slices"], row["slices_missing"]) == (2, 1)
    assert row["tumor_volume_mm3"] is None
    assert row["volume_note"] == "1 missing slice"


def test_a_quarantined_slice_counts_as_missing_once_wherever_it_lies() -> None:
    in_the_middle = only(volumes([mask_row(1), mask_row(3)], [quarantine_row(2)], set()))
    at_the_end = only(volumes([mask_row(1), mask_row(2)], [quarantine_row(3)], set()))
    assert in_the_middle["slices_missing"] == at_the_end["slices_missing"] == 1
    assert at_the_end["tumor_volume_mm3"] is None


def test_blank_slices_above_and_below_the_brain_take_nothing_from_its_volume() -> None:
    row = only(volumes([mask_row(3), mask_row(4)], blank(1, 2, 5), set()))
    assert (row["slices"], row["slices_missing"], row["volume_note"]) == (2, 0, None)
    in_the_middle = only(volumes([mask_row(3), mask_row(5)], blank(4), set()))
    assert (in_the_middle["slices_missing"], in_the_middle["tumor_volume_mm3"]) == (1, None)
    nothing_else = only(volumes([], blank(1, 2), set()))
    assert (nothing_else["slices_missing"], nothing_else["tumor_volume_mm3"]) == (2, None)


@pytest.mark.parametrize(
    ("segmented", "lost", "missing"),
    [
        ([1, 2, 3], blank(7), 3),  # 4 to 6 are not there at all
        ([5, 6], blank(1, 2), 2),  # 3 and 4
        ([1, 2], [quarantine_row(5), *blank(6)], 3),  # 3, 4 and 5
        ([2, 3], [quarantine_row(1), *blank(0, 4)], 1),
        ([1, 2], [*blank(3), quarantine_row(4)], 2),  # a blank slice between two others
    ],
)
def test_a_hole_before_a_blank_slice_is_missing(
    segmented: list[int], lost: list[dict[str, Any]], missing: int
) -> None:
    row = only(volumes([mask_row(index) for index in segmented], lost, set()))
    assert (row["slices_missing"], row["tumor_volume_mm3"]) == (missing, None)


@pytest.mark.parametrize(
    ("segmented", "lost", "missing"),
    [
        ([1, 2, 4], [quarantine_row(None)], 1),  # it may be number 3
        ([1, 2, 4], [quarantine_row(None), quarantine_row(None)], 2),
        ([1, 2, 4], [quarantine_row(3), quarantine_row(None)], 2),  # it cannot
        ([1, 2], [quarantine_row(None)], 1),
        ([], [quarantine_row(None), quarantine_row(4)], 2),
        ([1, 2, 9], [quarantine_row(3), quarantine_row(3), quarantine_row(None)], 6),
    ],
)
def test_a_slice_of_unknown_number_is_missing_once(
    segmented: list[int], lost: list[dict[str, Any]], missing: int
) -> None:
    assert (
        only(volumes([mask_row(index) for index in segmented], lost, set()))["slices_missing"]
        == missing
    )


def test_a_quarantined_slice_with_the_number_of_another_is_a_duplicate() -> None:
    for lost in (quarantine_row(2), *blank(2), *blank(1)):
        row = only(volumes([mask_row(1), mask_row(2)], [lost], set()))
        assert (row["slices_missing"], row["slices_duplicated"], row["tumor_volume_mm3"]) == (
            0,
            1,
            None,
        )


def test_a_series_without_any_known_spacing_and_one_with_some_differ() -> None:
    unknown = only(
        volumes(
            [mask_row(1, spacing=(None, 1.0, 2.0)), mask_row(2, spacing=(None, 1.0, 2.0))],
            [],
            set(),
        )
    )
    assert unknown["volume_note"] == "unknown slice spacing"
    some = only(volumes([mask_row(1, spacing=(None, 1.0, 2.0)), mask_row(2)], [], set()))
    assert some["volume_note"] == "the spacing differs from slice to slice"


def test_a_patient_without_any_segmented_slice_is_still_there() -> None:
    row = only(volumes([], [quarantine_row(1), quarantine_row(2)], set()))
    assert (row["patient_id"], row["slices"], row["slices_missing"]) == ("A", 0, 2)
    assert "no slice could be segmented" in row["volume_note"]


def test_a_duplicated_slice_is_counted_and_gives_no_volume() -> None:
    row = only(volumes([mask_row(1), mask_row(1), mask_row(2)], [], set()))
    assert row["slices_duplicated"] == 1
    assert row["tumor_volume_mm3"] is None


def test_two_series_are_not_added_up() -> None:
    row = only(volumes([mask_row(1, series="one"), mask_row(1, series="two")], [], set()))
    assert row["slices_duplicated"] == 0
    assert row["tumor_volume_mm3"] is None
    assert (
        row["volume_note"]
        == "2 series: the same tumor would count 2 times (series.csv has each alone)"
    )


def test_each_series_has_its_own_volume_or_its_own_note() -> None:
    rows = [
        mask_row(1, series="first"),
        {**mask_row(1, series="later", voxels=3), "probability_sum": 200.0},
        {**mask_row(3, series="later"), "probability_in_mask": 6.0},
    ]
    by_series, by_patient = both_tables(rows, [], {"A"})
    first, later = by_series.to_pylist()
    assert (first["patient_id"], first["series_id"], first["tumor_volume_mm3"]) == (
        "A",
        "first",
        100.0,
    )
    assert (later["series_id"], later["tumor_voxels"], later["volume_note"]) == (
        "later",
        13,
        "1 missing slice",
    )
    assert first["seen_in_training"] == later["seen_in_training"] == "train"
    patient = only(by_patient)
    assert (patient["slices"], patient["slices_missing"], patient["tumor_voxels"]) == (3, 1, 23)
    assert patient["review_reasons"] == (
        "series later: 1 slice missing; "
        "series later: the model is unsure of its mask: it expects a Dice of 0.69"
    )
    # Later: 10 voxels of mask with p = 0.6, and 3 with p = 1: 9 / 13. Σ p does not count.
    assert later["estimated_dice"] == pytest.approx(9 / 13)
    assert first["estimated_dice"] == 1
    assert patient["estimated_dice"] == later["estimated_dice"]
    assert patient["review_score"] == later["review_score"] == 0.3077


def test_the_only_series_of_a_patient_is_the_patient() -> None:
    by_series, by_patient = both_tables([mask_row(1), mask_row(4)], [quarantine_row(9)], set())
    assert {**only(by_patient), "series_id": "A"} == only(by_series)


def test_different_study_dates_of_a_patient_are_in_the_table_of_series_only() -> None:
    days = {("A", "one"): date(2020, 1, 1), ("A", "two"): date(2020, 7, 1)}
    studies = {key: Study(day, (), {}) for key, day in days.items()}
    rows = [mask_row(1, series=name) for name in ("one", "two")]
    by_series, by_patient = both_tables(rows, [], set(), studies)
    assert by_series["study_date"].to_pylist() == list(days.values())
    assert by_patient["study_date"].to_pylist() == [None]
    assert by_patient["volume_note"].to_pylist() == [
        "2 series: the same tumor would count 2 times "
        "(series.csv has each alone, changes.csv the change from study to study)"
    ]


def test_series_of_one_date_have_no_change_to_point_to() -> None:
    study = Study(date(2020, 1, 1), (), {})
    rows = [mask_row(1, series=name) for name in ("one", "two")]
    _, by_patient = both_tables(rows, [], set(), {("A", "one"): study, ("A", "two"): study})
    assert "changes.csv" not in only(by_patient)["volume_note"]


def test_a_series_that_is_all_in_quarantine_leaves_its_patient_without_a_volume() -> None:
    lost = {**quarantine_row(1), "series_id": "lost"}
    by_series, by_patient = both_tables([mask_row(1)], [lost], set())
    assert by_series["volume_note"].to_pylist() == [
        None,
        "no slice could be segmented; 1 missing slice",
    ]
    assert only(by_patient)["volume_note"] == "1 missing slice"


@pytest.mark.parametrize(
    ("segmented", "lost", "missing"),
    [
        ([1, 2, 5], [quarantine_row(None, series=None)] * 2, 2),  # they may be 3 and 4
        (
            [1, 2, 5],
            [quarantine_row(3), *[quarantine_row(None, series=None)] * 2],
            3,
        ),  # one of them may be 4
        ([1, 2], [quarantine_row(None, series=None)], 1),
    ],
)
def test_slices_that_name_no_series_may_be_the_ones_that_are_not_there(
    segmented: list[int], lost: list[dict[str, Any]], missing: int
) -> None:
    row = only(volumes([mask_row(index) for index in segmented], lost, set()))
    assert (row["slices_missing"], row["tumor_volume_mm3"]) == (missing, None)


def test_a_quarantined_slice_without_patient_counts_for_the_only_series_of_its_name() -> None:
    at_the_end = only(volumes([mask_row(1)], [quarantine_row(2, patient=None)], set()))
    in_a_hole = only(volumes([mask_row(1), mask_row(3)], [quarantine_row(2, patient=None)], set()))
    assert at_the_end["slices_missing"] == in_a_hole["slices_missing"] == 1
    assert at_the_end["tumor_volume_mm3"] is None


def test_a_quarantined_slice_of_an_unknown_or_ambiguous_series_is_nobodys() -> None:
    nothing = quarantine_row(2, patient=None, series=None)
    assert only(volumes([mask_row(1)], [nothing], set()))["slices_missing"] == 0
    either = quarantine_row(2, patient=None, series="first")
    table = volumes([mask_row(1, patient=name, series="first") for name in "AB"], [either], set())
    assert table["slices_missing"].to_pylist() == [0, 0]


def test_a_run_without_any_slice_gives_empty_tables() -> None:
    by_series, by_patient = both_tables([], [], set())
    assert (by_series.num_rows, by_patient.num_rows) == (0, 0)


def test_spacing_that_changes_within_a_patient_gives_no_volume() -> None:
    row = only(volumes([mask_row(1), mask_row(2, spacing=(6.0, 1.0, 2.0))], [], set()))
    assert row["tumor_volume_mm3"] is None
    assert "differs" in row["volume_note"]


def test_impossible_spacing_gives_no_volume() -> None:
    row = only(volumes([mask_row(1, spacing=(0.0, 1.0, 2.0))], [], set()))
    assert row["tumor_volume_mm3"] is None
    assert "impossible spacing" in row["volume_note"]


def test_patients_are_sorted_and_those_of_the_training_are_marked() -> None:
    table = volumes([mask_row(1, patient="B"), mask_row(1, patient="A")], [], {"B"})
    assert table["patient_id"].to_pylist() == ["A", "B"]
    assert table["seen_in_training"].to_pylist() == ["no", "train"]


def test_a_million_slices_are_counted_in_seconds_and_right() -> None:
    of_file, per_series = 10_000, 100

    def batches() -> Any:
        index = np.arange(of_file, dtype=np.int32)
        for file in range(100):
            number = (index + file * of_file) // per_series
            names = pa.array([f"P{n}" for n in number])
            light = {
                "patient_id": names,
                "series_id": names,
                "slice_index": index % per_series + 1,
                "height": np.full(of_file, 8, np.int32),
                "width": np.full(of_file, 8, np.int32),
                **{
                    f"{axis}_spacing_mm": np.full(of_file, 1, np.float32)
                    for axis in ("slice", "row", "column")
                },
                "tumor_pixels": (index % per_series).astype(np.int64),
                "probability_sum": np.full(of_file, 0.5, np.float32),
                "probability_in_mask": np.full(of_file, 0.5),
                "file": np.full(of_file, file, np.int32),
                "tumor": (index % per_series > 0).astype(np.int32),
                "any_index": index % per_series + 1,
                "tissue_index": index % per_series + 1,
            }
            yield pa.RecordBatch.from_pydict(light, schema=series_counts.SLICES)

    nothing = schema.QUARANTINE.empty_table()
    counts = series_counts.count_series(
        itertools.chain(batches(), itertools.islice(batches(), 1)), nothing
    )  # file 0 is there twice
    assert counts.num_rows == 10_000
    first, last = counts.slice(0, 1).to_pylist()[0], counts.slice(9_999, 1).to_pylist()[0]
    assert (first["patient_id"], first["slices"], first["different"], first["tumor_voxels"]) == (
        "P0",
        200,
        100,
        2 * 4950,
    )
    assert (last["patient_id"], last["slices"], last["different"], last["first"], last["last"]) == (
        "P9999",
        100,
        100,
        1,
        100,
    )
    assert (last["slices_with_tumor"], last["tumor_voxels"], last["files"]) == (99, 4950, [99])
