"""fastai's DynamicUnet over one of torchvision's ResNets, with explicit skip connections."""

from typing import Any

import torch
import torchvision
from fastai.layers import ConvLayer, MergeLayer, ResBlock, ToTensorBase
from fastai.vision.learner import create_body
from fastai.vision.models.unet import DynamicUnet, ResizeToOrig, UnetBlock
from torch import Tensor, nn
from torch.nn import functional

from segmodel.core.errors import CheckpointError
from segmodel.models.classes import CLASSES
from segmodel.settings.base import SIZE_MULTIPLE

TENSOR_CORE_CHANNELS = 8
"""A GPU's tensor cores need channels in multiples of 8; the last ResBlock has 99."""


def dynamic_unet(encoder: str, channels: int) -> "HookFreeUnet":
    """Build a network with fresh weights.

    Args:
        encoder: name of a ResNet of torchvision.
        channels: of the input.

    Raises:
        CheckpointError: torchvision has no such network.
    """
    if not hasattr(torchvision.models, encoder):
        raise CheckpointError(f"unknown network: arch 'dynamic', encoder {encoder!r}")
    # Always without weights: `load_encoder` loads them, for any number of input channels.
    body = create_body(
        getattr(torchvision.models, encoder)(weights=None), n_in=channels, pretrained=False
    )
    # The image size decides only how often to upsample: the same for every multiple of 32.
    return HookFreeUnet(DynamicUnet(body, CLASSES, (2 * SIZE_MULTIPLE, 2 * SIZE_MULTIPLE)))


class HookFreeUnet(nn.Module):
    """fastai's DynamicUnet with skip connections passed as values instead of stored on hooks.

    It takes over the layers of a DynamicUnet: the state dict has the same names, and the logits are
    equal to the bit. Without hooks, threads can share a network, and `torch.compile` and export
    work.

    On a GPU, the input and the layers of the last block are padded with channels of zeros and
    weights of zero. The logits are the same up to rounding; a step takes four fifths of the time.

    Args:
        unet: DynamicUnet over an encoder that is an `nn.Sequential`; do not use it afterwards.
    """

    def __init__(self, unet: DynamicUnet) -> None:
        super().__init__()
        self.layers: nn.ModuleList = unet.layers
        encoder = list(self.layers[0].children())
        # For each UnetBlock, in order: the number of the encoder part that feeds its skip.
        self.skips = [
            next(index for index, part in enumerate(encoder) if hook.hook.id in part._forward_hooks)
            for hook in unet.sfs
        ]
        unet.sfs.remove()

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Logits (N, 2, H, W)."""
        size, padding = x_nchw.shape[-2:], _padding_channels(x_nchw)
        if padding:
            x_nchw = functional.pad(x_nchw, (0, 0, 0, 0, 0, padding)).contiguous(
                memory_format=torch.channels_last
            )
        y_nchw, skips = self._encode(x_nchw)
        for layer in self.layers[1:]:
            if isinstance(layer, UnetBlock):
                y_nchw = _decode(layer, y_nchw, skips.pop(0))
            elif isinstance(layer, ResizeToOrig):
                y_nchw = _resize_nearest(y_nchw, size)
            elif isinstance(layer, MergeLayer):
                y_nchw = torch.cat([y_nchw, x_nchw], dim=1)
            elif isinstance(layer, ResBlock):
                y_nchw = _residual(layer, y_nchw, padding)
            elif isinstance(layer, ConvLayer):
                y_nchw = _convolve(layer[0], y_nchw)
            elif not isinstance(layer, ToTensorBase):
                y_nchw = layer(y_nchw)
        return y_nchw

    def _encode(self, x_nchw: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the encoder; give its output and the skip connections in the decoder's order."""
        first, *others = self.layers[0].children()
        outputs = [_convolve(first, x_nchw)]
        for part in others:
            outputs.append(part(outputs[-1]))
        return outputs[-1], [outputs[index] for index in self.skips]


def _padding_channels(x_nchw: Tensor) -> int:
    return -x_nchw.shape[1] % TENSOR_CORE_CHANNELS if x_nchw.is_cuda else 0


def _decode(block: UnetBlock, low_nchw: Tensor, skip_nchw: Tensor) -> Tensor:
    """Upsample the deeper activations, join them with the skip connection, and convolve."""
    high_nchw = _resize_nearest(block.shuf(low_nchw), skip_nchw.shape[-2:])
    both: Tensor = block.relu(torch.cat([high_nchw, block.bn(skip_nchw)], dim=1))
    merged: Tensor = block.conv2(block.conv1(both))
    return merged


def _residual(block: ResBlock, x_nchw: Tensor, padding: int) -> Tensor:
    """Run a residual block whose input has `padding` more channels than the block's weights."""
    first, second = block.convpath
    y_nchw = _convolve(second[0], first[1](_convolve(first[0], x_nchw, padding)), padding)
    out_nchw: Tensor = block.act(y_nchw + block.idpath(x_nchw))
    return out_nchw


def _convolve(layer: Any, x_nchw: Tensor, padding_out: int = 0) -> Tensor:
    """Run a convolution, ignoring input channels beyond its own.

    Args:
        layer: the convolution.
        x_nchw: may have more channels than the layer takes.
        padding_out: channels of zeros to add to the output.
    """
    padding_in = x_nchw.shape[1] - layer.in_channels
    if not (padding_in or padding_out):
        out_nchw: Tensor = layer(x_nchw)
        return out_nchw
    weight = functional.pad(layer.weight, (0, 0, 0, 0, 0, padding_in, 0, padding_out))
    bias = None if layer.bias is None else functional.pad(layer.bias, (0, padding_out))
    return functional.conv2d(x_nchw, weight, bias, layer.stride, layer.padding)


def _resize_nearest(x_nchw: Tensor, size: torch.Size) -> Tensor:
    if x_nchw.shape[-2:] == size:
        return x_nchw
    return functional.interpolate(x_nchw, size, mode="nearest")
