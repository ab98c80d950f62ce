"""The settings of jobs.segment and jobs.summarize."""

import math
from dataclasses import dataclass
from typing import Literal

from segmodel.settings.base import (
    JobConfig,
    TrackedConfig,
    parse_workers,
    refuse_inputs_folder,
    require,
)


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(TrackedConfig):
    """Settings of jobs.segment."""

    archive: str
    """Archive to segment."""
    checkpoint: str
    """Checkpoint folder, or output folder of a training (best/ is used)."""
    output: str
    """Run folder that all nodes share; an unfinished run there continues."""
    workers: str | None = None
    """Number of actors; by default one for each GPU, or one for each machine without GPUs."""
    batch_size: int | None = None
    """Slices in a forward pass; by default 128 on a GPU, 32 on CPUs."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Use torch.compile. auto: on GPUs, from 20,000 slices on."""
    threshold: float | None = None
    """A pixel is tumor above this probability; by default the checkpoint's threshold."""
    shard_slices: int = 512
    """Slices in a shard, the unit of work. Fixed for a run."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on GPUs, and on CPUs if faster. Fixed for a run."""
    tta: bool = False
    """Also average over three mirror images; takes 4 times as long. Fixed for a run."""
    keep_largest: bool = False
    """Keep only the largest 3D component of each series; masks/ is not changed."""
    min_volume_ml: float | None = None
    """Remove 3D components smaller than this volume in ml; masks/ is not changed."""
    max_quarantined: float = 0.01
    """Share of non-blank slices in quarantine above which the exit code is 3."""
    retry_failed: bool = False
    """Re-run shards with quarantined slices, unless all of these are blank."""
    dry_run: bool = False
    """Check the inputs and print what would be done; write nothing."""
    gpu: bool = False
    """Require a GPU for each actor; by default GPUs are used if there are any."""
    cpu: bool = False
    """Segment on CPUs even if there are GPUs."""

    def __post_init__(self) -> None:
        self._resolve("archive", "checkpoint", "output")
        refuse_inputs_folder(self.output, archive=self.archive, checkpoint=self.checkpoint)
        self._check_device(self.gpu, self.cpu)
        if self.workers is not None:
            parse_workers(self.workers)
        require(
            self.batch_size is None or self.batch_size >= 1,
            f"--batch-size must be 1 or more, got {self.batch_size}",
        )
        require(
            self.threshold is None or 0 < self.threshold < 1,
            f"--threshold must lie between 0 and 1, got {self.threshold}",
        )
        require(
            self.shard_slices >= 1, f"--shard-slices must be 1 or more, got {self.shard_slices}"
        )
        _check_min_volume(self.min_volume_ml)
        require(
            0 <= self.max_quarantined <= 1,
            f"--max-quarantined is a share, 0 to 1, got {self.max_quarantined}",
        )


@dataclass(frozen=True, kw_only=True)
class SummarizeConfig(JobConfig):
    """Settings of jobs.summarize."""

    segmentation: str
    """Run folder of a finished jobs.segment."""
    keep_largest: bool = False
    """Keep only the largest 3D component of each series; masks/ is not changed."""
    min_volume_ml: float | None = None
    """Remove 3D components smaller than this volume in ml; masks/ is not changed."""

    def __post_init__(self) -> None:
        self._resolve("segmentation")
        _check_min_volume(self.min_volume_ml)


def _check_min_volume(ml: float | None) -> None:
    require(
        ml is None or (math.isfinite(ml) and ml > 0),
        f"--min-volume-ml must be greater than 0, got {ml}",
    )
