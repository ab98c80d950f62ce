"""The settings of jobs.demo."""

from dataclasses import dataclass

from segmodel.settings.base import TrackedConfig, require


@dataclass(frozen=True, kw_only=True)
class DemoConfig(TrackedConfig):
    """Settings of jobs.demo."""

    output: str = "demo-output"
    """Local folder for all results; an earlier demo there is replaced."""
    seed: int = 0
    """Seed of the patients and the training."""

    def __post_init__(self) -> None:
        self._resolve("output")
        require(
            "://" not in self.output,
            f"--output of the demo must be a local folder, got {self.output}",
        )
        require(self.seed >= 0, f"--seed must be 0 or more, got {self.seed}")
