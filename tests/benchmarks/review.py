"""python -m tests.benchmarks.review --evaluation runs/evaluation-a runs/evaluation-b

Measures whether the review queue finds errors: Spearman's rank correlation of review_score with
1 - Dice, over the series with tumor of unseen patients, which neither trained the model nor chose
its epoch. Each evaluation names the segmentations that it judged; their folders must still be
there. The last line is one JSON object.

To have each patient unseen once, put every second patient's folder into half-a and the others into
half-b (links will do). Then, for each half, with the flags of any network:

    python -m jobs.ingest --format lgg --source kaggle_3m --archive all --spacing-mm 1 1 5    (once)
    python -m jobs.ingest --format lgg --source half-a --archive a --spacing-mm 1 1 5
    python -m jobs.train --archive a --output model-a --image-size 96 --epochs 6
    python -m jobs.segment --archive all --checkpoint model-a --output run-a
    python -m jobs.evaluate --archive all --segmentation run-a --output evaluation-a
"""

import argparse
import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

POOR = 0.5
"""A series with a lower Dice should stand in the first quarter of the queue."""
RESAMPLES, SEED = 2_000, 20_240_501


@dataclass(frozen=True)
class Looked:
    """A series with tumor that the model has not seen."""

    score: float
    """Its review_score."""
    dice: float


def main() -> None:
    """Print a line for each segmentation, one for all of them together, and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument(
        "--evaluation", nargs="+", type=Path, required=True, help="output folders of jobs.evaluate"
    )
    found: dict[str, list[Looked]] = {}
    for evaluation in parser.parse_args().evaluation:
        for name, series in read(evaluation).items():
            found[f"{evaluation.name}: {name}"] = series
    if len(found) > 1:
        found["together"] = [one for series in found.values() for one in series]
    result = {name: describe(series) for name, series in found.items()}
    for name, values in result.items():
        print(f"{name:44} {values}", flush=True)
    print(json.dumps(result))


def read(evaluation: Path) -> dict[str, list[Looked]]:
    """The series of each segmentation that was judged."""
    runs = json.loads((evaluation / "evaluation.json").read_text())["segmentations"]
    scores = {
        (name, row["patient_id"], row["series_id"]): float(row["review_score"])
        for name, run in runs.items()
        for row in _rows(Path(run) / "series.csv")
    }
    found: dict[str, list[Looked]] = {name: [] for name in runs}
    for row in _rows(evaluation / "patients.csv"):
        if row["seen_in_training"] == "no" and int(row["true_voxels"]) > 0:
            key = (row["segmentation"], row["patient_id"], row["series_id"])
            found[row["segmentation"]].append(Looked(scores[key], float(row["dice"])))
    return found


def describe(series: list[Looked]) -> dict[str, object]:
    """What is shown of some series; None where it does not exist."""
    score_n = np.array([one.score for one in series])
    error_n = np.array([1 - one.dice for one in series])
    low, high = _interval(score_n, error_n)
    first = np.argsort(-score_n, kind="stable")[: math.ceil(len(series) / 4)]
    poor = error_n > 1 - POOR
    return {
        "series": len(series),
        "rank_correlation": _correlation(score_n, error_n),
        "low": low,
        "high": high,
        "mean_dice": round(float(1 - error_n.mean()), 3) if series else None,
        "poor_in_first_quarter": f"{int(poor[first].sum())} of {int(poor.sum())}",
        "first_quarter": len(first),
    }


def _correlation(score_n: np.ndarray, error_n: np.ndarray) -> float | None:
    if len(set(score_n)) < 2 or len(set(error_n)) < 2:
        return None
    return round(float(spearmanr(score_n, error_n).statistic), 3)


def _interval(score_n: np.ndarray, error_n: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % percentile bootstrap interval of the correlation; series are resampled."""
    rng, count = np.random.default_rng(SEED), len(score_n)
    drawn = (rng.integers(0, count, count) for _ in range(RESAMPLES if count else 0))
    found = [_correlation(score_n[n], error_n[n]) for n in drawn]
    known = [value for value in found if value is not None]
    if not known:
        return None, None
    low, high = np.quantile(known, [0.025, 0.975])
    return round(float(low), 3), round(float(high), 3)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
