"""Settings of jobs in which a test changes some."""

from typing import Any

from segmodel.settings.segment import SegmentConfig
from segmodel.settings.training import TrainConfig


def train_config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"archive": "/data/archive", "output": "/data/model", **changes})


def segment_config(**changes: Any) -> SegmentConfig:
    return SegmentConfig(
        **{
            "archive": "/data/archive",
            "checkpoint": "/data/model",
            "output": "/data/run",
            **changes,
        }
    )
