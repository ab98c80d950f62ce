"""Builds a network from its settings.

Every network takes float (N, C, H, W), normalised, H and W multiples of 32, and gives logits
(N, 2, H, W): background, tumor.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from segmodel.core.errors import CheckpointError
from segmodel.models.unet import ClassicalUnet


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """All that is needed to build a network; stored in model.json."""

    arch: Literal["dynamic", "classical"]
    channels: int
    """Of the input."""
    encoder: str | None = None
    """Only for dynamic: the name of a ResNet."""
    dropout: float = 0.0
    """Only for classical."""
    width: int = 64
    """Only for classical: channels of the first level; each level below has twice as many."""


def build_model(settings: ModelSettings) -> nn.Module:
    """Build a network with fresh weights.

    Raises:
        CheckpointError: the settings name no known network.
    """
    if settings.arch == "classical":
        return ClassicalUnet(settings.channels, settings.width, settings.dropout)
    if settings.arch == "dynamic" and settings.encoder is not None:
        # Importing fastai and torchvision is slow: only a process that needs them waits for it.
        from segmodel.models.dynamic_unet import dynamic_unet

        return dynamic_unet(settings.encoder, settings.channels)
    raise CheckpointError(f"unknown network: arch {settings.arch!r}, encoder {settings.encoder!r}")
