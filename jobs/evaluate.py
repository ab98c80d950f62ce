"""python -m jobs.evaluate --archive mri/archive --segmentation mri/run --output mri/evaluation

Compare segmentations with the masks of an archive: Dice, HD95, NSD, volumes, lesions.
"""

import sys
from collections.abc import Sequence

from segmodel.settings import cli
from segmodel.settings.evaluate import EvaluateConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these flags and return its exit code."""
    config = cli.parse(EvaluateConfig, argv, __doc__)
    from segmodel.evaluation.driver import evaluate

    found = evaluate(config)
    print(found.table)
    for name, outcome in found.outcomes.items():
        if outcome.unpaired:
            print(
                f"{len(outcome.unpaired)} annotated series of {name} could not be compared: "
                f"see {config.output}/not_compared.csv"
            )
    print(
        f"report: {config.output}/report.html; per patient: {config.output}/patients.csv; "
        f"per lesion: {config.output}/lesions.csv"
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
