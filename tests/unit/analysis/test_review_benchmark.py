"""The script that measures the review queue, on tables written by hand."""

import csv
import json
from pathlib import Path

from tests.benchmarks.review import Looked, describe, read


def table(path: Path, names: str, *rows: tuple[object, ...]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names.split(), *rows])


def test_only_series_with_tumor_that_the_model_has_in_no_way_seen_are_judged(
    tmp_path: Path,
) -> None:
    run, evaluation = tmp_path / "run", tmp_path / "evaluation"
    scores = [(name, "s", score) for name, score in zip("ABCD", (0.1, 0.2, 0.3, 0.4), strict=True)]
    table(run / "series.csv", "patient_id series_id review_score", *scores)
    table(
        evaluation / "patients.csv",
        "segmentation patient_id series_id seen_in_training true_voxels dice",
        ("run", "A", "s", "no", 5, 0.9),
        ("run", "B", "s", "no", 0, 1.0),  # healthy
        ("run", "C", "s", "validation", 5, 0.8),
        ("run", "D", "s", "train", 5, 0.7),
    )
    text = json.dumps({"segmentations": {"run": str(run)}})
    (evaluation / "evaluation.json").write_text(text)
    assert read(evaluation) == {"run": [Looked(0.1, 0.9)]}


def test_the_correlation_is_that_of_ranks_and_the_first_quarter_is_counted() -> None:
    # Ranks of the scores 4 3 2 1, of the errors 4 2 3 1: 1 - 6 (0 + 1 + 1 + 0) / (4 * 15).
    series = [Looked(0.9, 0.1), Looked(0.5, 0.7), Looked(0.2, 0.4), Looked(0.1, 0.9)]
    found = describe(series)
    assert found["rank_correlation"] == 0.8
    assert found["poor_in_first_quarter"] == "1 of 2"  # 0.1; 0.4 is the third of four


def test_scores_that_do_not_differ_have_no_correlation() -> None:
    assert describe([Looked(0.5, 0.1), Looked(0.5, 0.7)])["rank_correlation"] is None
    assert describe([])["rank_correlation"] is None
