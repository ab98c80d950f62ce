"""The two networks: fastai's DynamicUnet over a ResNet, and the classical U-Net.

Both take float (N, C, H, W), normalised, H and W multiples of 32, and give logits (N, 2, H, W): background, tumor.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from segmodel.core.errors import CheckpointError

TUMOR = 1
CLASSES = 2


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """All that is needed to build a network; stored in model.json."""

    arch: Literal["dynamic", "classical"]
    channels: int
    encoder: str | None = None
    """Of dynamic."""
    dropout: float = 0.0
    """Of classical."""
    width: int = 64
    """Of classical: channels of the first level; each of the four below has twice as many."""


def build_model(settings: ModelSettings) -> nn.Module:
    """A network with fresh weights.

    Raises:
        CheckpointError: the settings name no known network.
    """
    if settings.arch == "classical":
        return ClassicalUnet(settings.channels, settings.width, settings.dropout)
    if settings.arch == "dynamic" and settings.encoder is not None:
        # fastai and torchvision take longer to import than all the rest: only who needs them waits for them.
        from segmodel.models.dynamic_unet import dynamic_unet

        return dynamic_unet(settings.encoder, settings.channels)
    raise CheckpointError(f"unknown network: arch {settings.arch!r}, encoder {settings.encoder!r}")


class ClassicalUnet(nn.Module):
    """The U-Net of 2015 with padded convolutions, so that the logits have the size of the input.

    Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.

    Args:
        channels: of the input.
        width: channels of the first level, 64 in the paper; the bottom, four poolings down, has 16 times as many.
        dropout: after the two deepest levels of the contracting path, 0 to 1.
    """

    def __init__(self, channels: int, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(
            _double_conv(before, after)
            for before, after in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * after, after, 2, stride=2) for after in reversed(widths[:-1])
        )
        self.merge = nn.ModuleList(
            _double_conv(2 * after, after) for after in reversed(widths[:-1])
        )
        self.head = nn.Conv2d(width, CLASSES, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Logits (N, 2, H, W)."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                x_nchw = functional.max_pool2d(x_nchw, 2)
            x_nchw = block(x_nchw)
            if level >= len(self.down) - 2:
                x_nchw = self.dropout(x_nchw)
            skips.append(x_nchw)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x_nchw = merge(torch.cat([skips.pop(), up(x_nchw)], dim=1))
        logits: Tensor = self.head(x_nchw)
        return logits


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_flops(settings: ModelSettings, image_size: int) -> int:
    """Floating-point operations of one slice's forward pass; a multiplication and an addition are two."""
    from torch.utils.flop_counter import (
        FlopCounterMode,
    )  # imports Triton, which no worker of a segmentation needs

    model = build_model(settings).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, settings.channels, image_size, image_size, device="meta"))
    return int(counter.get_total_flops())


def activation_bytes(settings: ModelSettings, image_size: int) -> int:
    """Memory that one slice's pass in fp32 keeps for the gradient; nothing is computed, only shapes are followed."""
    model = build_model(settings).to("meta").train()
    kept: dict[int, int] = {}
    own = {id(parameter) for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            kept[id(tensor)] = tensor.numel() * tensor.element_size()
            tensors.append(tensor)  # as long as it lives, no other gets its id
        return tensor

    tensors: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Two slices: batch norm in training takes no batch of a single value.
        model(torch.empty(2, settings.channels, image_size, image_size, device="meta"))
    return sum(kept.values()) // 2


def set_up_cpu(threads: int | None) -> None:
    """What a worker process needs before it computes on CPUs: its number of threads (None leaves torch's), and no denormals.

    Numbers too small for a float's full precision come up as weights decay, and cost a CPU a hundred times an ordinary one.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def _double_conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1),
        nn.ReLU(inplace=True),
    )
