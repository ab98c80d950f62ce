"""The settings of jobs.report."""

from dataclasses import dataclass

from segmodel.settings.base import JobConfig


@dataclass(frozen=True, kw_only=True)
class ReportConfig(JobConfig):
    """Settings of jobs.report."""

    run: str
    """Output folder of jobs.segment, jobs.evaluate, jobs.train or jobs.find_lr."""
    without_pictures: bool = False
    """Leave pictures of patients out of the page."""

    def __post_init__(self) -> None:
        self._resolve("run")
