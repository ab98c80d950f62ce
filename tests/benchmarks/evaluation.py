"""python -m tests.benchmarks.evaluation --archive data/archive --output runs/made-up

Makes segmentations with errors from an archive's annotations, and times their evaluation.

The run folders stay in the output folder, so that one can look at the pages. The last line is one
JSON object.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np

from segmodel.archive.reader import Archive
from segmodel.evaluation.driver import evaluate
from segmodel.runtime import ray_cluster
from segmodel.settings.evaluate import EvaluateConfig
from tests.benchmarks.machine import describe
from tests.support.segmented import perturb, truth_of, write_run

SKILLS = {"first": 0.9, "second": 0.6}


def main() -> None:
    """Make two segmentations, and time the evaluation of the first and of both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    runs = [make_run(given.archive, given.output / name, SKILLS[name]) for name in SKILLS]
    result: dict[str, object] = {
        "slices": Archive(str(given.archive)).info.slices,
        "machine": describe(),
    }
    with ray_cluster.connect():
        for name, several in (("one", runs[:1]), ("two", runs)):
            started = time.monotonic()
            config = EvaluateConfig(
                archive=str(given.archive),
                segmentation=",".join(map(str, several)),
                output=str(given.output / f"evaluation-{name}"),
                overwrite=True,
                tracking="none",
            )
            evaluate(config)
            result[f"seconds_{name}"] = round(time.monotonic() - started, 1)
    print(json.dumps(result))


def make_run(archive: Path, run: Path, skill: float) -> Path:
    """A run folder with perturbed truth: of six patients one was learned from, one validated."""
    rng = np.random.default_rng(int(100 * skill))
    shutil.rmtree(run, ignore_errors=True)
    masks, seen = {}, {}
    for number, (patient, slices) in enumerate(truth_of(archive).items()):
        own = skill + 0.1 if number % 6 == 0 else skill * rng.uniform(0.6, 1.1)
        predicted = perturb(np.stack(list(slices.values())), min(own, 1.0), rng)
        masks |= dict(zip(slices, predicted, strict=True))
        seen[patient] = {0: "train", 1: "validation"}.get(number % 6, "no")
    write_run(run, archive, masks, seen)
    return run


if __name__ == "__main__":
    main()
