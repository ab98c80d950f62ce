"""python -m jobs.train --archive s3://mri/archive --output s3://mri/model --workers 4

Train a segmentation model on an archive's annotated patients.
"""

import sys
from collections.abc import Sequence

from segmodel.settings import cli
from segmodel.settings.training import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these flags and return its exit code."""
    config = cli.parse(TrainConfig, argv, __doc__)
    from segmodel.training.driver import train

    result = train(config)
    best = result.best
    with_tumor = best.tumor_patient_dice
    of_those = "" if with_tumor is None else f", mean of those with tumor {with_tumor:.4f}"
    print(
        f"best epoch {best.epoch}: Dice of all validation voxels {best.dice:.4f}, "
        f"mean of the patients {best.patient_dice:.4f}{of_those}"
    )
    print(
        f"checkpoints: {result.output}/best and {result.output}/last; "
        f"report: {result.output}/report.html"
    )
    print(
        f"per epoch: {result.output}/history.csv; "
        f"per validation patient: {result.output}/patients.csv"
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
