"""The classical U-Net."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from segmodel.models.classes import CLASSES


class ClassicalUnet(nn.Module):
    """The U-Net of 2015 with padded convolutions: the logits have the size of the input.

    Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
    Segmentation", MICCAI 2015.

    Args:
        channels: of the input.
        width: channels of the first level, 64 in the paper; each of the four levels below it has
            twice as many as the one above.
        dropout: probability, 0 to 1, that a channel is zeroed after each of the two deepest
            encoder levels.
    """

    def __init__(self, channels: int, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(
            _double_conv(before, after)
            for before, after in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.dropouts = nn.ModuleList(SliceDropout(dropout, channels) for channels in widths[-2:])
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
                x_nchw = self.dropouts[level - len(self.down)](x_nchw)
            skips.append(x_nchw)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x_nchw = merge(torch.cat([skips.pop(), up(x_nchw)], dim=1))
        logits: Tensor = self.head(x_nchw)
        return logits


class SliceDropout(nn.Module):
    """Dropout of whole channels whose random numbers can be set for each slice.

    A training sets `random_nc` before each batch, so that what is dropped from a slice does not
    depend on its worker. Without them, torch draws the numbers.

    Args:
        probability: that a channel is zeroed, 0 to below 1.
        channels: of the input.
    """

    def __init__(self, probability: float, channels: int) -> None:
        super().__init__()
        self.probability, self.channels = probability, channels
        self.random_nc: Tensor | None = None
        """0 to 1, (N, C), on the input's device."""

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Zero channels and scale the others up, in training only."""
        if not self.training or self.probability == 0:
            return x_nchw
        if self.random_nc is None:
            return functional.dropout2d(x_nchw, self.probability)
        kept_nc = (self.random_nc >= self.probability).to(x_nchw.dtype) / (1 - self.probability)
        return x_nchw * kept_nc[:, :, None, None]


def _double_conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1),
        nn.ReLU(inplace=True),
    )
