"""python -m jobs.find_lr --archive s3://mri/archive --output s3://mri/lr

Suggest a learning rate for jobs.train, by a test that raises it from step to step.
"""

import sys
from collections.abc import Sequence

from segmodel.settings import cli
from segmodel.settings.training import FindLrConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these flags and return its exit code."""
    config = cli.parse(FindLrConfig, argv, __doc__, not_used=FindLrConfig.NOT_USED)
    from segmodel.training.driver import find_lr

    suggestion = find_lr(config)
    print(f"suggestion: --lr {suggestion:.2g}")
    print(f"report: {config.output}/report.html; per step: {config.output}/lr_find.csv")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
