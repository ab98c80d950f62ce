"""python -m jobs.ingest --source s3://scans/kaggle_3m --format lgg --archive s3://mri/archive

Read raw scans into an archive.
"""

import sys
from collections.abc import Sequence

from segmodel.settings import cli
from segmodel.settings.ingest import IngestConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these flags and return its exit code."""
    config = cli.parse(IngestConfig, argv, __doc__)
    from segmodel.ingestion.driver import ingest
    from segmodel.ingestion.dry_run import show_choices

    if config.dry_run:
        print(show_choices(config), "dry run: nothing was written", sep="\n")
        return 0
    result = ingest(config)
    info = result.archive
    if config.append:
        of_known = f", and {result.new_series} new series of them" if result.new_series else ""
        print(f"{result.added} patients added, {result.known} were already there{of_known}")
    print(
        f"{info.patients} patients, {info.slices} slices ({info.annotated_slices} with a mask) "
        f"in {config.archive}"
    )
    if result.left_out:
        print(
            f"{result.left_out} files or series were left out: "
            f"see {config.archive}/rejects for the reasons"
        )
    if result.too_many_rejected:
        print(
            f"error: {result.patients_left_out} patients have no usable data, more than "
            f"--max-rejected allows ({config.max_rejected:.1%} of all); the archive has the others",
            file=sys.stderr,
        )
    return result.exit_code


if __name__ == "__main__":
    sys.exit(cli.run(main))
