"""python -m jobs.compare --archive s3://mri/archive --output s3://mri/compare

Compare Dice, speed and size of the classical U-Net and DynamicUnet, or of trained networks.
"""

import sys
from collections.abc import Sequence

from segmodel.settings import cli
from segmodel.settings.training import CompareConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these flags and return its exit code."""
    config = cli.parse(CompareConfig, argv, __doc__)
    from segmodel.evaluation.comparison import compare

    print(compare(config))
    print(
        f"table: {config.output}/compare.md and compare.csv; "
        f"figure: {config.output}/figures/compare.png"
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
