"""python -m jobs.summarize --segmentation s3://mri/runs/tonight --keep-largest

Compute volumes, review and report of a finished segmentation again, with or without postprocessing.
"""

import sys
from collections.abc import Sequence

from segmodel.settings import cli
from segmodel.settings.base import NOT_TRACKED
from segmodel.settings.segment import SummarizeConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these flags and return its exit code."""
    config = cli.parse(SummarizeConfig, argv, __doc__, not_used=NOT_TRACKED)
    from segmodel.segmentation.summary import summarize

    volumes = summarize(config)
    print(
        f"{volumes.num_rows} patients; volumes: {config.segmentation}/volumes.csv; "
        f"report: {config.segmentation}/report.html"
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
