"""The settings of jobs.evaluate."""

import math
from dataclasses import dataclass

from segmodel.settings.base import (
    TrackedConfig,
    absolute_uri,
    refuse_inputs_folder,
    refuse_job_copy,
    require,
)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(TrackedConfig):
    """Settings of jobs.evaluate."""

    archive: str
    """Archive with annotated patients."""
    segmentation: str
    """Run folder of jobs.segment. Several, separated by commas: compared with the first."""
    output: str
    """Folder for tables and report."""
    tolerance_mm: float = 1.0
    """Tolerance of the surface Dice (NSD) in mm; in voxels if the spacing is unknown."""
    overwrite: bool = False
    """Replace an earlier evaluation in the output folder."""

    def __post_init__(self) -> None:
        self._resolve("archive", "output")
        runs = [absolute_uri(run.strip()) for run in self.segmentation.split(",") if run.strip()]
        require(bool(runs), "--segmentation must name a run folder")
        require(len(set(runs)) == len(runs), "--segmentation names one folder twice")
        for run in runs:
            refuse_job_copy("--segmentation", run)
            refuse_inputs_folder(self.output, archive=self.archive, segmentation=run)
        object.__setattr__(self, "segmentation", ",".join(runs))
        require(
            math.isfinite(self.tolerance_mm) and self.tolerance_mm > 0,
            f"--tolerance-mm must be greater than 0, got {self.tolerance_mm}",
        )

    @property
    def segmentations(self) -> list[str]:
        """The run folders."""
        return self.segmentation.split(",")
