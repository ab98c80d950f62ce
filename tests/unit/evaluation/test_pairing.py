from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmodel.archive.reader import Archive
from segmodel.core.mask_png import encode_mask
from segmodel.evaluation import pairing
from segmodel.evaluation.pairing import Pair, Unpaired
from segmodel.runs import series_masks
from tests.support.scans import scans, write
from tests.support.segmented import write_masks


def annotated(patient: str, count: int, tumor: int, **more: object) -> pa.Table:
    """Slices of 4x4 pixels; the first `tumor` of them have tumor in their first row."""
    slices = scans(patient, count, **more)
    mask = np.zeros((count, 4, 4), np.uint8)
    mask[:tumor, 0] = 1
    column = slices.schema.get_field_index("mask")
    values = pa.array([one.tobytes() for one in mask], pa.binary())
    return slices.set_column(column, slices.schema.field(column), values)


def all_pairs(archive: Path, run: Path) -> list[Pair | Unpaired]:
    opened = Archive(str(archive))
    tasks = series_masks.plan(opened, opened.index())
    return [pair for task in tasks for pair in pairing.pairs(str(archive), task, str(run))]


def right_half() -> np.ndarray:
    mask = np.zeros((4, 4), bool)
    mask[:, 2:] = True
    return mask


def test_a_series_that_crosses_shards_is_compared_whole(tmp_path: Path) -> None:
    write(tmp_path / "a", annotated("P1", 50, 3), annotated("P2", 50, 50))
    masks = {f"P{n}_{i}": right_half() for n in (1, 2) for i in range(1, 51)}
    write_masks(tmp_path / "run", tmp_path / "a", masks)
    first, second = all_pairs(tmp_path / "a", tmp_path / "run")
    assert (first.patient_id, second.patient_id) == ("P1", "P2")
    assert first.truth.shape == second.predicted.shape == (50, 4, 4)
    assert (first.truth.sum(), second.truth.sum()) == (3 * 4, 50 * 4)
    assert second.predicted.sum() == 50 * 8
    assert first.spacing_mm == (5, 1, 1)


def test_a_slice_without_a_mask_counts_as_without_tumor(tmp_path: Path) -> None:
    write(tmp_path / "a", annotated("P1", 4, 4))
    write_masks(tmp_path / "run", tmp_path / "a", {"P1_1": right_half(), "P1_2": right_half()})
    (pair,) = all_pairs(tmp_path / "a", tmp_path / "run")
    assert pair.predicted.sum(axis=(1, 2)).tolist() == [8, 8, 0, 0]
    assert pair.slices_not_segmented == 2


def test_slices_that_nobody_annotated_are_not_compared(tmp_path: Path) -> None:
    whole = annotated("P1", 4, 4)
    column = whole.schema.get_field_index("mask")
    some = pa.array([*whole["mask"].to_pylist()[:3], None], pa.binary())
    write(tmp_path / "a", whole.set_column(column, whole.schema.field(column), some))
    write_masks(tmp_path / "run", tmp_path / "a", {f"P1_{i}": right_half() for i in range(1, 5)})
    (pair,) = all_pairs(tmp_path / "a", tmp_path / "run")
    assert pair.truth.shape == (3, 4, 4)
    assert pair.slices_without_truth == 1


def test_postprocessed_masks_replace_those_of_the_model(tmp_path: Path) -> None:
    write(tmp_path / "a", annotated("P1", 2, 1))
    run = tmp_path / "run"
    write_masks(run, tmp_path / "a", {"P1_1": right_half(), "P1_2": right_half()})
    nothing = encode_mask(np.zeros((4, 4), bool))
    rows = [
        {"patient_id": "P1", "series_id": "P1", "slice_id": f"P1_{i}", "mask": nothing}
        for i in (1, 2)
    ]
    (run / "postprocessed").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), run / "postprocessed" / "series-00000.parquet")
    (pair,) = all_pairs(tmp_path / "a", run)
    assert not pair.predicted.any()


def test_without_spacing_or_with_a_gap_there_are_no_millimetres(tmp_path: Path) -> None:
    gap = annotated("P2", 5, 5).take(pa.array([0, 1, 3, 4]))
    write(tmp_path / "a", annotated("P1", 3, 1, spacing=None), gap)
    masks = {f"P{n}_{i}": right_half() for n in (1, 2) for i in range(1, 6)}
    write_masks(tmp_path / "run", tmp_path / "a", masks)
    assert [pair.spacing_mm for pair in all_pairs(tmp_path / "a", tmp_path / "run")] == [None] * 2


@pytest.mark.parametrize(
    ("masks", "reason"),
    [({}, "not segmented"), ({"P1_1": np.zeros((4, 5), bool)}, "4x5 pixels")],
)
def test_a_series_that_cannot_be_compared_says_why(
    tmp_path: Path, masks: dict[str, np.ndarray], reason: str
) -> None:
    write(tmp_path / "a", annotated("P1", 3, 1))
    write_masks(tmp_path / "run", tmp_path / "a", masks)
    (found,) = all_pairs(tmp_path / "a", tmp_path / "run")
    assert isinstance(found, Unpaired)
    assert reason in found.reason
