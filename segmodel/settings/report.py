"""The settings of jobs.report."""

from dataclasses import dataclass

from segmodel.settings.base import JobConfig


@dataclass(frozen=True, kw_only=True)
class ReportConfig(JobConfig):
    """Settings of jobs.report."""

    run: str
    """Output folder of a finished jobs.segment, jobs.evaluate or jobs.train."""
    without_pictures: bool = False
    """Leave the patients' pictures out of the page."""

    def __post_init__(self) -> None:
        self._resolve("run")
