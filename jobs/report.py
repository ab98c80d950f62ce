"""python -m jobs.report --run s3://mri/runs/tonight

Write report.html of a segmentation, an evaluation, a training or a range test again.
"""

import sys
from collections.abc import Sequence

from segmodel.settings import cli
from segmodel.settings.base import NOT_TRACKED
from segmodel.settings.report import ReportConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these flags and return its exit code."""
    config = cli.parse(ReportConfig, argv, __doc__, not_used=NOT_TRACKED)
    from segmodel.report.driver import write_report

    print(f"report: {write_report(config)}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
