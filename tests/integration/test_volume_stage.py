from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from segmodel.analysis.studies import Study
from segmodel.analysis.tumor_shape import Postprocessing
from segmodel.analysis.volumes import summarise
from segmodel.core import schema
from segmodel.core.mask_png import decode_mask, encode_mask
from segmodel.storage import store
from tests.support.segmented import mask_row, only, quarantine_row

SIZE = 8


def square(side: int, row: int = 1, column: int = 1) -> np.ndarray:
    mask_hw = np.zeros((SIZE, SIZE), dtype=bool)
    mask_hw[row : row + side, column : column + side] = True
    return mask_hw


def publish(
    run: Path, name: str, *rows: tuple[str, int, np.ndarray], spacing_mm: float | None = 10.0
) -> None:
    """A mask file; a row is (patient, slice index, mask)."""
    full = [
        {
            "slice_id": f"{patient}_{index}",
            "patient_id": patient,
            "series_id": patient,
            "slice_index": index,
            "height": mask_hw.shape[0],
            "width": mask_hw.shape[1],
            "row_spacing_mm": 1.0,
            "column_spacing_mm": 1.0,
            "slice_spacing_mm": spacing_mm,
            "mask": encode_mask(mask_hw),
            "tumor_pixels": int(mask_hw.sum()),
            "mean_probability": 0.75 if mask_hw.any() else None,
            "probability_sum": 0.75 * float(mask_hw.sum()),
        }
        for patient, index, mask_hw in rows
    ]
    store.publish_table(str(run / "masks" / name), pa.Table.from_pylist(full, schema=schema.MASKS))


def by_id(table: pa.Table, key: str = "patient_id") -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in table.to_pylist()}


def test_a_patient_that_lies_in_several_files_is_put_together(tmp_path: Path) -> None:
    publish(tmp_path, "0.parquet", ("A", 1, square(2)), ("B", 2, square(1)))
    publish(tmp_path, "1.parquet", ("A", 3, square(0)), ("A", 2, square(3)))
    publish(tmp_path, "2.parquet", ("B", 1, square(1, row=6, column=7)), ("B", 3, square(1)))
    rows = by_id(summarise(str(tmp_path), {"A": "no", "B": "train"}.get))
    assert [rows["A"][name] for name in ("slices", "slices_with_tumor", "tumor_voxels")] == [
        3,
        2,
        4 + 9,
    ]
    assert rows["A"]["largest_component_voxels"] == 13
    assert rows["A"]["tumor_volume_ml"] == pytest.approx(0.13)
    assert rows["B"]["largest_component_voxels"] == 2  # slice 1's pixel is elsewhere
    assert rows["A"]["review_reasons"] is None
    assert rows["A"]["review_score"] == 0.25  # 1 minus the mean probability in the mask
    assert rows["B"]["review_reasons"] == (
        "mask is in pieces: the largest holds 67% of it; tumor touches the image border"
    )
    assert [rows[name]["seen_in_training"] for name in "AB"] == ["no", "train"]
    for name in ("series", "volumes"):
        csv = pyarrow.csv.read_csv(tmp_path / f"{name}.csv")
        assert csv.column_names == pq.read_schema(tmp_path / f"{name}.parquet").names
        assert csv["tumor_voxels"].to_pylist() == [13, 3]


def test_ids_may_hold_anything(tmp_path: Path) -> None:
    def named(patient: str, series: str, mask_hw: np.ndarray) -> dict[str, Any]:
        return {
            **mask_row(1, int(mask_hw.sum()), patient, series),
            "mask": encode_mask(mask_hw),
            "mean_probability": None,
        }

    rows = [
        named("1:2", "3", square(2)),
        named("1", "2:3", square(1)),
        named("1\0002", "3", square(3)),
    ]
    masks = [
        {name: value for name, value in row.items() if name in schema.MASKS.names} for row in rows
    ]
    store.publish_table(
        str(tmp_path / "masks/0.parquet"), pa.Table.from_pylist(masks, schema=schema.MASKS)
    )
    found = by_id(summarise(str(tmp_path), {}.get))
    assert {name: row["largest_component_voxels"] for name, row in found.items()} == {
        "1:2": 4,
        "1": 1,
        "1\0002": 9,
    }


def test_a_healthy_series_has_no_component_and_one_of_several_sizes_an_unknown_one(
    tmp_path: Path,
) -> None:
    publish(
        tmp_path,
        "0.parquet",
        ("A", 1, square(0)),
        ("B", 1, square(2)),
        ("B", 2, np.ones((4, 4), bool)),
    )
    rows = by_id(summarise(str(tmp_path), {}.get))
    assert [rows[name]["largest_component_voxels"] for name in "AB"] == [0, None]
    assert rows["A"]["review_reasons"] == "no tumor found"


def test_slices_with_the_same_index_are_united_in_the_shape_and_each_counted(
    tmp_path: Path,
) -> None:
    publish(tmp_path, "0.parquet", ("A", 1, square(2)), ("A", 1, square(2, row=2)))
    row = only(summarise(str(tmp_path), {}.get))
    assert (row["largest_component_voxels"], row["slices_duplicated"]) == (6, 1)
    assert (row["tumor_voxels"], row["slices_with_tumor"]) == (8, 2)


def test_slice_numbers_that_are_far_apart_take_no_memory_for_what_lies_between(
    tmp_path: Path,
) -> None:
    everywhere = np.ones((256, 256), bool)
    publish(tmp_path, "0.parquet", ("A", -(2**31), everywhere), ("A", 2**31 - 1, everywhere))
    row = only(summarise(str(tmp_path), {}.get))
    assert (row["slices_missing"], row["largest_component_voxels"]) == (2**32 - 2, 256 * 256)


def two_components(index: int) -> tuple[str, int, np.ndarray]:
    return "A", index, square(2) | square(1, row=6, column=6)


def test_postprocessing_changes_what_is_counted_and_leaves_the_models_masks(tmp_path: Path) -> None:
    publish(tmp_path, "0.parquet", two_components(1), ("A", 2, square(2)), ("B", 1, square(2)))
    before = (tmp_path / "masks/0.parquet").read_bytes()
    plain = by_id(summarise(str(tmp_path), {}.get))
    assert plain["A"]["tumor_voxels"] == 9
    assert not (tmp_path / "postprocessed").exists()
    rows = by_id(
        summarise(str(tmp_path), {}.get, Postprocessing(keep_largest=True, min_volume_ml=None))
    )
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


def test_quarantined_slices_of_an_unknown_series_leave_their_patient_without_volume(
    tmp_path: Path,
) -> None:
    publish(tmp_path, "0.parquet", two_components(1), ("B", 1, square(2)))
    lost = [quarantine_row(7, series=None), quarantine_row(None, series=None)]
    store.publish_table(
        str(tmp_path / "quarantine/0.parquet"), pa.Table.from_pylist(lost, schema=schema.QUARANTINE)
    )
    row = by_id(
        summarise(str(tmp_path), {}.get, Postprocessing(keep_largest=True, min_volume_ml=None))
    )
    assert row["B"]["tumor_volume_ml"] is not None
    unknown, known, _ = pq.read_table(tmp_path / "series.parquet").to_pylist()
    assert (unknown["series_id"], unknown["slices_missing"]) == (None, 2)
    assert (known["slices_missing"], known["tumor_voxels"], known["tumor_volume_ml"]) == (
        0,
        5,
        None,
    )
    assert (
        known["volume_note"]
        == "2 slices of this patient in quarantine name no series; therefore not postprocessed"
    )
    assert (row["A"]["slices_missing"], row["A"]["volume_note"]) == (2, "2 missing slices")
    assert row["A"]["review_reasons"] == (
        "series unknown: no slice could be segmented; series unknown: 2 slices missing; "
        "series A: mask is in pieces: the largest holds 80% of it"
    )


def test_a_second_summary_leaves_nothing_of_an_earlier_postprocessing(tmp_path: Path) -> None:
    publish(tmp_path, "0.parquet", two_components(1))
    keep_largest = Postprocessing(keep_largest=True, min_volume_ml=None)
    summarise(str(tmp_path), {}.get, keep_largest)
    publish(tmp_path, "0.parquet", ("A", 1, square(2)))
    summarise(str(tmp_path), {}.get, keep_largest)
    assert not (tmp_path / "postprocessed").exists()


def test_a_summary_without_postprocessing_leaves_no_masks_of_an_earlier_one(
    tmp_path: Path,
) -> None:
    """jobs.evaluate takes those in postprocessed/ for the run's own."""
    publish(tmp_path, "0.parquet", two_components(1))
    summarise(str(tmp_path), {}.get, Postprocessing(keep_largest=True, min_volume_ml=None))
    assert (tmp_path / "postprocessed").exists()
    assert only(summarise(str(tmp_path), {}.get))["tumor_voxels"] == 5
    assert not (tmp_path / "postprocessed").exists()


def test_small_components_go_only_where_their_volume_is_known(tmp_path: Path) -> None:
    small = Postprocessing(keep_largest=False, min_volume_ml=0.02)  # 2 voxels of 10 mm3
    publish(tmp_path, "0.parquet", two_components(1))
    assert only(summarise(str(tmp_path), {}.get, small))["tumor_voxels"] == 4
    publish(tmp_path, "0.parquet", two_components(1), spacing_mm=None)
    row = only(summarise(str(tmp_path), {}.get, small))
    assert (row["tumor_voxels"], row["volume_note"]) == (
        5,
        "unknown slice spacing; therefore not postprocessed",
    )
    row = only(
        summarise(str(tmp_path), {}.get, Postprocessing(keep_largest=True, min_volume_ml=None))
    )
    assert (row["tumor_voxels"], row["volume_note"]) == (4, "unknown slice spacing")


def test_a_series_with_a_gap_or_of_several_sizes_is_not_postprocessed(tmp_path: Path) -> None:
    keep_largest = Postprocessing(keep_largest=True, min_volume_ml=None)
    publish(tmp_path, "0.parquet", two_components(1), two_components(3))
    row = only(summarise(str(tmp_path), {}.get, keep_largest))
    assert (row["tumor_voxels"], row["volume_note"]) == (
        10,
        "1 missing slice; therefore not postprocessed",
    )
    publish(tmp_path, "0.parquet", two_components(1), ("A", 2, np.ones((4, 4), bool)))
    row = only(summarise(str(tmp_path), {}.get, keep_largest))
    assert (row["tumor_voxels"], row["volume_note"]) == (
        21,
        "slices of several sizes; therefore not postprocessed",
    )
    assert row["tumor_volume_ml"] == pytest.approx(0.21)


def test_a_tumor_that_postprocessing_takes_out_whole_is_not_found(tmp_path: Path) -> None:
    publish(tmp_path, "0.parquet", ("A", 1, square(1)))
    row = only(
        summarise(str(tmp_path), {}.get, Postprocessing(keep_largest=False, min_volume_ml=1.0))
    )
    assert (row["tumor_voxels"], row["slices_with_tumor"], row["tumor_volume_ml"]) == (0, 0, 0.0)
    assert row["review_reasons"] == "no tumor found"


def test_changes_between_dated_studies_lie_beside_the_volumes(tmp_path: Path) -> None:
    series = [("2020", square(2), date(2020, 1, 1)), ("2021", square(3), date(2021, 1, 1))]
    rows = [
        {**mask_row(1, int(mask.sum()), "A", name), "mask": encode_mask(mask)}
        for name, mask, _ in series
    ]
    masks = [{name: row.get(name) for name in schema.MASKS.names} for row in rows]
    store.publish_table(
        str(tmp_path / "masks/0.parquet"), pa.Table.from_pylist(masks, schema=schema.MASKS)
    )
    studies = {("A", name): Study(day, (), {}) for name, _, day in series}
    summarise(str(tmp_path), {}.get, studies=studies)
    row = only(pq.read_table(tmp_path / "changes.parquet"))
    # 4 and 9 voxels of 10 mm3; 2020 has 366 days
    assert (row["first_volume_ml"], row["second_volume_ml"]) == pytest.approx((0.04, 0.09))
    assert (row["days"], row["difference_percent"]) == (366, pytest.approx(125.0))
    assert '"A","next",2020-01-01,2021-01-01,366,' in (tmp_path / "changes.csv").read_text()
