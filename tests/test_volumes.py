import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from segmodel import lesions, schema, storage, tally
from segmodel.images import decode_mask, encode_mask
from segmodel.shapes import Postprocessing
from segmodel.volumes import add_shapes, series_of, summarise, tables


def mask_row(
    index: int, voxels: int = 10, patient: str = "A", series: str = "A", spacing: Any = (5.0, 1.0, 2.0)
) -> dict[str, Any]:
    slice_mm, row_mm, column_mm = spacing
    return {
        "slice_id": f"{patient}_{series}_{index}",
        "patient_id": patient,
        "series_id": series,
        "slice_index": index,
        "height": 8,
        "width": 8,
        "slice_spacing_mm": slice_mm,
        "row_spacing_mm": row_mm,
        "column_spacing_mm": column_mm,
        "tumor_pixels": voxels,
        "uncertainty": 0.0,
        "file": 0,
        "tumor": int(voxels > 0),
        "any_index": index,
        "tissue_index": index,
    }


def quarantine_row(
    index: int | None, patient: str | None = "A", series: str | None = "A", stage: str = "read"
) -> dict[str, Any]:
    return {"slice_id": "x", "patient_id": patient, "series_id": series, "slice_index": index, "stage": stage, "reason": "?"}


def blank(*indices: int) -> list[dict[str, Any]]:
    return [quarantine_row(index, stage="blank") for index in indices]


def both_tables(segmented: list[dict], quarantined: list[dict], training: set[str]) -> tuple[pa.Table, pa.Table]:
    """The table of series and that of patients, without shapes."""
    lost = pa.Table.from_pylist(quarantined, schema=schema.QUARANTINE)
    counts = tally.count_series([pa.RecordBatch.from_pylist([row], schema=tally.SLICES) for row in segmented], lost)
    series = series_of(counts, lost)
    add_shapes(series, lesions.SHAPES.empty_table())
    return tables(series, training)


def volumes(segmented: list[dict], quarantined: list[dict], training: set[str]) -> pa.Table:
    return both_tables(segmented, quarantined, training)[1]


def only(table: Any) -> dict[str, Any]:
    (row,) = table.to_pylist()
    return row


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
def test_a_hole_before_a_blank_slice_is_missing(segmented: list[int], lost: list[dict[str, Any]], missing: int) -> None:
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
def test_a_slice_of_unknown_number_is_missing_once(segmented: list[int], lost: list[dict[str, Any]], missing: int) -> None:
    assert only(volumes([mask_row(index) for index in segmented], lost, set()))["slices_missing"] == missing


def test_a_quarantined_slice_with_the_number_of_another_is_a_duplicate() -> None:
    for lost in (quarantine_row(2), *blank(2), *blank(1)):
        row = only(volumes([mask_row(1), mask_row(2)], [lost], set()))
        assert (row["slices_missing"], row["slices_duplicated"], row["tumor_volume_mm3"]) == (0, 1, None)


def test_a_series_without_any_known_spacing_and_one_with_some_differ() -> None:
    unknown = only(volumes([mask_row(1, spacing=(None, 1.0, 2.0)), mask_row(2, spacing=(None, 1.0, 2.0))], [], set()))
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
    assert row["volume_note"] == "2 series: the same tumor would count 2 times (series.csv has each alone)"


def test_each_series_has_its_own_volume_or_its_own_note() -> None:
    rows = [mask_row(1, series="first"), mask_row(1, series="later", voxels=3), mask_row(3, series="later")]
    by_series, by_patient = both_tables(rows, [], {"A"})
    first, later = by_series.to_pylist()
    assert (first["patient_id"], first["series_id"], first["tumor_volume_mm3"]) == ("A", "first", 100.0)
    assert (later["series_id"], later["tumor_voxels"], later["volume_note"]) == ("later", 13, "1 missing slice")
    assert first["seen_in_training"]
    assert later["seen_in_training"]
    patient = only(by_patient)
    assert (patient["slices"], patient["slices_missing"], patient["tumor_voxels"]) == (3, 1, 23)
    assert patient["review_reasons"] == "series later: 1 slice missing"
    assert patient["review_score"] == later["review_score"] == 0.5


def test_the_only_series_of_a_patient_is_the_patient() -> None:
    by_series, by_patient = both_tables([mask_row(1), mask_row(4)], [quarantine_row(9)], set())
    assert {**only(by_patient), "series_id": "A"} == only(by_series)


def test_a_series_that_is_all_in_quarantine_leaves_its_patient_without_a_volume() -> None:
    lost = {**quarantine_row(1), "series_id": "lost"}
    by_series, by_patient = both_tables([mask_row(1)], [lost], set())
    assert by_series["volume_note"].to_pylist() == [None, "no slice could be segmented; 1 missing slice"]
    assert only(by_patient)["volume_note"] == "1 missing slice"


def test_quarantined_slices_of_an_unknown_series_leave_their_patient_without_any_volume(tmp_path: Path) -> None:
    publish(tmp_path, "0.parquet", two_components(1), ("B", 1, square(2)))
    lost = [quarantine_row(7, series=None), quarantine_row(None, series=None)]
    storage.publish_table(str(tmp_path / "quarantine/0.parquet"), pa.Table.from_pylist(lost, schema=schema.QUARANTINE))
    row = by_id(summarise(str(tmp_path), [], Postprocessing(keep_largest=True, min_volume_ml=None)).volumes)
    assert row["B"]["tumor_volume_ml"] is not None
    unknown, known, _ = pq.read_table(tmp_path / "series.parquet").to_pylist()
    assert (unknown["series_id"], unknown["slices_missing"]) == (None, 2)
    assert (known["slices_missing"], known["tumor_voxels"], known["tumor_volume_ml"]) == (0, 5, None)
    assert known["volume_note"] == "2 slices of this patient in quarantine name no series; therefore not postprocessed"
    assert (row["A"]["slices_missing"], row["A"]["volume_note"]) == (2, "2 missing slices")
    assert row["A"]["review_reasons"] == "series unknown: no slice could be segmented; series unknown: 2 slices missing"


@pytest.mark.parametrize(
    ("segmented", "lost", "missing"),
    [
        ([1, 2, 5], [quarantine_row(None, series=None)] * 2, 2),  # they may be 3 and 4
        ([1, 2, 5], [quarantine_row(3), *[quarantine_row(None, series=None)] * 2], 3),  # one of them may be 4
        ([1, 2], [quarantine_row(None, series=None)], 1),
    ],
)
def test_slices_that_name_no_series_may_be_the_ones_that_are_not_there(
    segmented: list[int], lost: list[dict[str, Any]], missing: int
) -> None:
    row = only(volumes([mask_row(index) for index in segmented], lost, set()))
    assert (row["slices_missing"], row["tumor_volume_mm3"]) == (missing, None)


def test_a_quarantined_slice_that_names_no_patient_is_missing_in_the_only_series_of_its_name() -> None:
    at_the_end = only(volumes([mask_row(1)], [quarantine_row(2, patient=None)], set()))
    in_a_hole = only(volumes([mask_row(1), mask_row(3)], [quarantine_row(2, patient=None)], set()))
    assert at_the_end["slices_missing"] == in_a_hole["slices_missing"] == 1
    assert at_the_end["tumor_volume_mm3"] is None


def test_a_quarantined_slice_whose_series_is_not_known_either_or_is_of_two_patients_is_nobodys() -> None:
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
    assert table["seen_in_training"].to_pylist() == [False, True]


SIZE = 8


def square(side: int, row: int = 1, column: int = 1) -> np.ndarray:
    mask_hw = np.zeros((SIZE, SIZE), dtype=bool)
    mask_hw[row : row + side, column : column + side] = True
    return mask_hw


def publish(run: Path, name: str, *rows: tuple[str, int, np.ndarray], spacing_mm: float | None = 10.0) -> None:
    """A mask file; a row is (patient, slice index, mask)."""
    full = [
        {
            "slice_id": f"{patient}_{index}", "patient_id": patient, "series_id": patient, "slice_index": index,
            "height": mask_hw.shape[0], "width": mask_hw.shape[1],
            "row_spacing_mm": 1.0, "column_spacing_mm": 1.0, "slice_spacing_mm": spacing_mm,
            "mask": encode_mask(mask_hw), "tumor_pixels": int(mask_hw.sum()),
            "mean_probability": 0.75 if mask_hw.any() else None, "uncertainty": 0.25,
        }
        for patient, index, mask_hw in rows
    ]  # fmt: skip
    storage.publish_table(str(run / "masks" / name), pa.Table.from_pylist(full, schema=schema.MASKS))


def by_id(table: pa.Table, key: str = "patient_id") -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in table.to_pylist()}


def test_a_patient_that_lies_in_several_files_is_put_together(tmp_path: Path) -> None:
    publish(tmp_path, "0.parquet", ("A", 1, square(2)), ("B", 2, square(1)))
    publish(tmp_path, "1.parquet", ("A", 3, square(0)), ("A", 2, square(3)))
    publish(tmp_path, "2.parquet", ("B", 1, square(1, row=6, column=7)), ("B", 3, square(1)))
    rows = by_id(summarise(str(tmp_path), ["B"]).volumes)
    assert [rows["A"][name] for name in ("slices", "slices_with_tumor", "tumor_voxels")] == [3, 2, 4 + 9]
    assert rows["A"]["largest_component_voxels"] == 13
    assert rows["A"]["tumor_volume_ml"] == pytest.approx(0.13)
    assert rows["B"]["largest_component_voxels"] == 2  # slice 1's pixel is elsewhere
    assert rows["A"]["review_reasons"] is None
    assert rows["A"]["review_score"] == 0.25
    assert rows["B"]["review_reasons"] == "tumor touches the image border"
    assert [rows[name]["seen_in_training"] for name in "AB"] == [False, True]
    for name in ("series", "volumes"):
        csv = pyarrow.csv.read_csv(tmp_path / f"{name}.csv")
        assert csv.column_names == pq.read_schema(tmp_path / f"{name}.parquet").names
        assert csv["tumor_voxels"].to_pylist() == [13, 3]


def test_ids_may_hold_anything(tmp_path: Path) -> None:
    def named(patient: str, series: str, mask_hw: np.ndarray) -> dict[str, Any]:
        return {**mask_row(1, int(mask_hw.sum()), patient, series), "mask": encode_mask(mask_hw), "mean_probability": None}

    rows = [named("1:2", "3", square(2)), named("1", "2:3", square(1)), named("1\0002", "3", square(3))]
    masks = [{name: value for name, value in row.items() if name in schema.MASKS.names} for row in rows]
    storage.publish_table(str(tmp_path / "masks/0.parquet"), pa.Table.from_pylist(masks, schema=schema.MASKS))
    found = by_id(summarise(str(tmp_path), []).volumes)
    assert {name: row["largest_component_voxels"] for name, row in found.items()} == {"1:2": 4, "1": 1, "1\0002": 9}


def test_a_healthy_series_has_no_component_and_one_of_several_sizes_an_unknown_one(tmp_path: Path) -> None:
    publish(tmp_path, "0.parquet", ("A", 1, square(0)), ("B", 1, square(2)), ("B", 2, np.ones((4, 4), bool)))
    rows = by_id(summarise(str(tmp_path), []).volumes)
    assert [rows[name]["largest_component_voxels"] for name in "AB"] == [0, None]
    assert rows["A"]["review_reasons"] == "no tumor found"


def test_slices_with_the_same_index_are_united_in_the_shape_and_each_counted(tmp_path: Path) -> None:
    publish(tmp_path, "0.parquet", ("A", 1, square(2)), ("A", 1, square(2, row=2)))
    row = only(summarise(str(tmp_path), []).volumes)
    assert (row["largest_component_voxels"], row["slices_duplicated"]) == (6, 1)
    assert (row["tumor_voxels"], row["slices_with_tumor"]) == (8, 2)


def test_slice_numbers_that_are_far_apart_take_no_memory_for_what_lies_between(tmp_path: Path) -> None:
    everywhere = np.ones((256, 256), bool)
    publish(tmp_path, "0.parquet", ("A", -(2**31), everywhere), ("A", 2**31 - 1, everywhere))
    row = only(summarise(str(tmp_path), []).volumes)
    assert (row["slices_missing"], row["largest_component_voxels"]) == (2**32 - 2, 256 * 256)


def two_components(index: int) -> tuple[str, int, np.ndarray]:
    return "A", index, square(2) | square(1, row=6, column=6)


def test_postprocessing_changes_what_is_counted_and_leaves_the_models_masks(tmp_path: Path) -> None:
    publish(tmp_path, "0.parquet", two_components(1), ("A", 2, square(2)), ("B", 1, square(2)))
    before = (tmp_path / "masks/0.parquet").read_bytes()
    plain = by_id(summarise(str(tmp_path), []).volumes)
    assert plain["A"]["tumor_voxels"] == 9
    assert not (tmp_path / "postprocessed").exists()
    rows = by_id(summarise(str(tmp_path), [], Postprocessing(keep_largest=True, min_volume_ml=None)).volumes)
    assert (rows["A"]["tumor_voxels"], rows["A"]["largest_component_voxels"]) == (8, 8)
    assert rows["A"]["tumor_volume_ml"] == pytest.approx(0.08)
    assert rows["B"] == plain["B"]
    assert (tmp_path / "masks/0.parquet").read_bytes() == before

    (path,) = (tmp_path / "postprocessed").iterdir()
    assert pq.read_schema(path).names == schema.MASKS.names
    final = by_id(pq.read_table(path), "slice_id")
    assert list(final) == ["A_1", "A_2"]  # the whole of the changed series, nothing of the other
    assert (decode_mask(final["A_1"]["mask"]) == square(2)).all()
    assert [final[name]["tumor_pixels"] for name in ("A_1", "A_2")] == [4, 4]
    assert [final[name]["mean_probability"] for name in ("A_1", "A_2")] == [None, 0.75]


def test_a_second_summary_leaves_nothing_of_an_earlier_postprocessing(tmp_path: Path) -> None:
    publish(tmp_path, "0.parquet", two_components(1))
    keep_largest = Postprocessing(keep_largest=True, min_volume_ml=None)
    summarise(str(tmp_path), [], keep_largest)
    publish(tmp_path, "0.parquet", ("A", 1, square(2)))
    summarise(str(tmp_path), [], keep_largest)
    assert not (tmp_path / "postprocessed").exists()


def test_small_components_go_only_where_their_volume_is_known(tmp_path: Path) -> None:
    small = Postprocessing(keep_largest=False, min_volume_ml=0.02)  # 2 voxels of 10 mm3
    publish(tmp_path, "0.parquet", two_components(1))
    assert only(summarise(str(tmp_path), [], small).volumes)["tumor_voxels"] == 4
    publish(tmp_path, "0.parquet", two_components(1), spacing_mm=None)
    row = only(summarise(str(tmp_path), [], small).volumes)
    assert (row["tumor_voxels"], row["volume_note"]) == (5, "unknown slice spacing; therefore not postprocessed")
    row = only(summarise(str(tmp_path), [], Postprocessing(keep_largest=True, min_volume_ml=None)).volumes)
    assert (row["tumor_voxels"], row["volume_note"]) == (4, "unknown slice spacing")


def test_a_series_with_a_gap_or_of_several_sizes_is_not_postprocessed(tmp_path: Path) -> None:
    keep_largest = Postprocessing(keep_largest=True, min_volume_ml=None)
    publish(tmp_path, "0.parquet", two_components(1), two_components(3))
    row = only(summarise(str(tmp_path), [], keep_largest).volumes)
    assert (row["tumor_voxels"], row["volume_note"]) == (10, "1 missing slice; therefore not postprocessed")
    publish(tmp_path, "0.parquet", two_components(1), ("A", 2, np.ones((4, 4), bool)))
    row = only(summarise(str(tmp_path), [], keep_largest).volumes)
    assert (row["tumor_voxels"], row["volume_note"]) == (21, "slices of several sizes; therefore not postprocessed")
    assert row["tumor_volume_ml"] == pytest.approx(0.21)


def test_a_tumor_that_postprocessing_takes_out_whole_is_not_found(tmp_path: Path) -> None:
    publish(tmp_path, "0.parquet", ("A", 1, square(1)))
    row = only(summarise(str(tmp_path), [], Postprocessing(keep_largest=False, min_volume_ml=1.0)).volumes)
    assert (row["tumor_voxels"], row["slices_with_tumor"], row["tumor_volume_ml"]) == (0, 0, 0.0)
    assert row["review_reasons"] == "no tumor found"


def test_a_million_slices_are_counted_in_seconds_and_right() -> None:
    of_file, per_series = 10_000, 100

    def batches() -> Any:
        index = np.arange(of_file, dtype=np.int32)
        for file in range(100):
            number = (index + file * of_file) // per_series
            names = pa.array([f"P{n}" for n in number])
            light = {
                "patient_id": names, "series_id": names, "slice_index": index % per_series + 1,
                "height": np.full(of_file, 8, np.int32), "width": np.full(of_file, 8, np.int32),
                **{f"{axis}_spacing_mm": np.full(of_file, 1, np.float32) for axis in ("slice", "row", "column")},
                "tumor_pixels": (index % per_series).astype(np.int64), "uncertainty": np.full(of_file, 0.5, np.float32),
                "file": np.full(of_file, file, np.int32), "tumor": (index % per_series > 0).astype(np.int32),
                "any_index": index % per_series + 1, "tissue_index": index % per_series + 1,
            }  # fmt: skip
            yield pa.RecordBatch.from_pydict(light, schema=tally.SLICES)

    nothing = schema.QUARANTINE.empty_table()
    counts = tally.count_series(itertools.chain(batches(), itertools.islice(batches(), 1)), nothing)  # file 0 is there twice
    assert counts.num_rows == 10_000
    first, last = counts.slice(0, 1).to_pylist()[0], counts.slice(9_999, 1).to_pylist()[0]
    assert (first["patient_id"], first["slices"], first["different"], first["tumor_voxels"]) == ("P0", 200, 100, 2 * 4950)
    assert (last["patient_id"], last["slices"], last["different"], last["first"], last["last"]) == ("P9999", 100, 100, 1, 100)
    assert (last["slices_with_tumor"], last["tumor_voxels"], last["files"]) == (99, 4950, [99])
