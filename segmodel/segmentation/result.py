"""The result of a segmentation."""

from dataclasses import dataclass

from segmodel.core import schema
from segmodel.runs import run_folder
from segmodel.runs.run_file import Counts
from segmodel.runs.run_folder import Work
from segmodel.segmentation.plan import SegmentationPlan


@dataclass(frozen=True)
class SegmentationResult:
    """What a run folder holds, and what this call added."""

    output: str
    counts: Counts
    """Of the whole archive."""
    shards_now: int
    """Shards that this call did; the others were done before."""
    slices_now: int
    seconds: float
    """Of this call's inference, from the first request to Ray to the last published shard."""
    too_many_quarantined: bool

    @property
    def exit_code(self) -> int:
        """0, or 3 when more slices ended in quarantine than was allowed."""
        return 3 if self.too_many_quarantined else 0


def count_result(
    plan: SegmentationPlan, work: Work, seconds: float, patients: int
) -> SegmentationResult:
    """Count what is in the run folder now.

    Args:
        plan: of the run.
        work: what this call did.
        seconds: of its inference.
        patients: in volumes.csv.
    """
    stages = run_folder.count_quarantined(plan.output, plan.archive, work.plan)
    blank = stages.pop(schema.BLANK, 0)
    quarantined = sum(stages.values())
    slices = plan.archive.info.slices
    return SegmentationResult(
        output=plan.output,
        counts=Counts(
            slices=slices,
            segmented=slices - quarantined - blank,
            quarantined=quarantined,
            blank=blank,
            patients=patients,
            shards=len(work.plan),
        ),
        shards_now=len(work.todo),
        slices_now=sum(shard.slices for shard in work.todo),
        seconds=seconds,
        too_many_quarantined=quarantined > plan.max_quarantined * slices,
    )
