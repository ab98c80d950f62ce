"""python -m jobs.ingest --source s3://scans/kaggle_3m --format lgg --archive s3://mri/archive"""

import sys
from collections.abc import Sequence

from segmodel.settings import cli
from segmodel.settings.jobs import IngestConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Turn raw scans into an archive."""
    config = cli.parse(IngestConfig, argv, __doc__)
    from segmodel.ingestion.driver import ingest

    result = ingest(config)
    info = result.archive
    if config.append:
        print(f"{result.added} patients added, {result.known} were there already")
    print(
        f"{info.patients} patients, {info.slices} slices ({info.annotated_slices} with a mask) in {config.archive}"
    )
    if result.left_out:
        print(
            f"{result.left_out} files were left out: see {config.archive}/rejects for the reasons"
        )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
