"""python -m jobs.train --archive s3://mri/archive --output s3://mri/model --workers 4"""

import sys
from collections.abc import Sequence

from segmodel import cli
from segmodel.config import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Train a segmentation model on an archive's annotated patients."""
    config = cli.parse(TrainConfig, argv, __doc__)
    from segmodel.training import train

    result = train(config)
    print(f"best epoch {result.best.epoch}: Dice {result.best.dice:.4f} on the validation patients")
    print(f"checkpoints: {result.output}/best and {result.output}/last; per epoch: {result.output}/history.csv")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
