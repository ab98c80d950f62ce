"""python -m jobs.segment --archive mri/archive --checkpoint mri/model --output mri/run

Segment an archive. If the job is interrupted, give the same command again to continue.
"""

import sys
from collections.abc import Sequence

from segmodel.settings import cli
from segmodel.settings.segment import SegmentConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these flags and return its exit code."""
    config = cli.parse(SegmentConfig, argv, __doc__)
    from segmodel.segmentation.driver import prepare, segment_archive

    if config.dry_run:
        print(prepare(config).report(), "dry run: nothing was written", sep="\n")
        return 0
    result = segment_archive(config)
    counts = result.counts
    if result.shards_now == 0:
        print(f"nothing to do: all {counts.shards} shards are there already")
    elif result.shards_now < counts.shards:
        print(
            f"{result.shards_now} of {counts.shards} shards done now, the others were there already"
        )
    blank = f", {counts.blank} blank" if counts.blank else ""
    print(
        f"{counts.segmented} of {counts.slices} slices segmented, "
        f"{counts.quarantined} in quarantine"
        f"{blank}, {counts.patients} patients"
    )
    print(
        f"masks: {result.output}/masks; volumes: {result.output}/volumes.csv; "
        f"report: {result.output}/report.html"
    )
    if result.too_many_quarantined:
        print(
            f"error: more than {config.max_quarantined:.1%} of the slices are in quarantine: "
            f"see {result.output}/quarantine for the reasons",
            file=sys.stderr,
        )
    return result.exit_code


if __name__ == "__main__":
    sys.exit(cli.run(main))
