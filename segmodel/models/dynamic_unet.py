"""fastai's DynamicUnet over one of torchvision's ResNets, without hooks, and the weights that its encoder starts from."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from fastai.layers import ConvLayer, MergeLayer, ResBlock, ToTensorBase
from fastai.vision.learner import create_body
from fastai.vision.models.unet import DynamicUnet, ResizeToOrig, UnetBlock
from torch import Tensor, nn
from torch.nn import functional

from segmodel.core.errors import CheckpointError
from segmodel.models.registry import CLASSES
from segmodel.settings.jobs import SIZE_MULTIPLE

TENSOR_CORE_CHANNELS = 8
"""A GPU's matrix units take channels by eights; a convolution of 99 of them takes a slower way."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def dynamic_unet(encoder: str, channels: int) -> "HookFreeUnet":
    """A network with fresh weights.

    Args:
        encoder: name of the ResNet.
        channels: of the input.

    Raises:
        CheckpointError: torchvision knows no such network.
    """
    if not hasattr(torchvision.models, encoder):
        raise CheckpointError(f"unknown network: arch 'dynamic', encoder {encoder!r}")
    # The body of a ResNet without weights: `load_encoder` brings them, also into a body with other input channels.
    body = create_body(
        getattr(torchvision.models, encoder)(weights=None), n_in=channels, pretrained=False
    )
    # The image size only decides how often to upsample, which is the same for every multiple of 32.
    return HookFreeUnet(DynamicUnet(body, CLASSES, (2 * SIZE_MULTIPLE, 2 * SIZE_MULTIPLE)))


class HookFreeUnet(nn.Module):
    """fastai's DynamicUnet with its skip connections passed from hand to hand instead of left on hooks.

    It takes the layers of a DynamicUnet over: the same names in the state dict, the same logits to the bit. What hooks forbid
    is then possible: several threads on one network, `torch.compile`, export.

    On a GPU, channels of zeros, and weights of zero for them, fill up the input and the layers that the input is merged into:
    the same logits to rounding, in four fifths of the time.

    Args:
        unet: DynamicUnet over an encoder that is an `nn.Sequential`; not to be used any more.
    """

    def __init__(self, unet: DynamicUnet) -> None:
        super().__init__()
        self.layers: nn.ModuleList = unet.layers
        encoder = list(self.layers[0].children())
        # Which parts of the encoder each UnetBlock takes its skip connection from, in the order of the blocks.
        self.skips = [
            next(index for index, part in enumerate(encoder) if hook.hook.id in part._forward_hooks)
            for hook in unet.sfs
        ]
        unet.sfs.remove()

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Logits (N, 2, H, W)."""
        size, extra = x_nchw.shape[-2:], _missing_channels(x_nchw)
        if extra:
            x_nchw = functional.pad(x_nchw, (0, 0, 0, 0, 0, extra)).contiguous(
                memory_format=torch.channels_last
            )
        y_nchw, skips = self._encode(x_nchw)
        for layer in self.layers[1:]:
            if isinstance(layer, UnetBlock):
                y_nchw = _up(layer, y_nchw, skips.pop(0))
            elif isinstance(layer, ResizeToOrig):
                y_nchw = _resize_nearest(y_nchw, size)
            elif isinstance(layer, MergeLayer):
                y_nchw = torch.cat([y_nchw, x_nchw], dim=1)
            elif isinstance(layer, ResBlock):
                y_nchw = _residual(layer, y_nchw, extra)
            elif isinstance(layer, ConvLayer):
                y_nchw = _convolve(layer[0], y_nchw)
            elif not isinstance(layer, ToTensorBase):
                y_nchw = layer(y_nchw)
        return y_nchw

    def _encode(self, x_nchw: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the encoder makes of the input, and the skip connections in the order in which the way up takes them."""
        first, *others = self.layers[0].children()
        kept = [_convolve(first, x_nchw)]
        for part in others:
            kept.append(part(kept[-1]))
        return kept[-1], [kept[index] for index in self.skips]


def _missing_channels(x_nchw: Tensor) -> int:
    return -x_nchw.shape[1] % TENSOR_CORE_CHANNELS if x_nchw.is_cuda else 0


def _residual(block: ResBlock, x_nchw: Tensor, extra: int) -> Tensor:
    """The block on an input that has `extra` channels more than its own."""
    first, second = block.convpath
    y_nchw = _convolve(second[0], first[1](_convolve(first[0], x_nchw, extra)), extra)
    out_nchw: Tensor = block.act(y_nchw + block.idpath(x_nchw))
    return out_nchw


def _convolve(layer: Any, x_nchw: Tensor, more_out: int = 0) -> Tensor:
    """The layer's convolution; input channels beyond its own count for nothing, and `more_out` more come out, of zeros."""
    more_in = x_nchw.shape[1] - layer.in_channels
    if not (more_in or more_out):
        out_nchw: Tensor = layer(x_nchw)
        return out_nchw
    weight = functional.pad(layer.weight, (0, 0, 0, 0, 0, more_in, 0, more_out))
    bias = None if layer.bias is None else functional.pad(layer.bias, (0, more_out))
    return functional.conv2d(x_nchw, weight, bias, layer.stride, layer.padding)


def _up(block: UnetBlock, low_nchw: Tensor, skip_nchw: Tensor) -> Tensor:
    """One step up: the deeper activations enlarged, beside those of the encoder, through the block's convolutions."""
    high_nchw = _resize_nearest(block.shuf(low_nchw), skip_nchw.shape[-2:])
    both: Tensor = block.relu(torch.cat([high_nchw, block.bn(skip_nchw)], dim=1))
    merged: Tensor = block.conv2(block.conv1(both))
    return merged


def _resize_nearest(x_nchw: Tensor, size: torch.Size) -> Tensor:
    return (
        x_nchw
        if x_nchw.shape[-2:] == size
        else functional.interpolate(x_nchw, size, mode="nearest")
    )


def load_encoder(model: nn.Module, encoder: str, weights: str) -> None:
    """Start the encoder of a DynamicUnet from pretrained weights, in place.

    Args:
        model: from `build_model`.
        encoder: name of the ResNet.
        weights: `imagenet`, `none` (nothing happens), or the path of a torchvision state dict.

    Raises:
        CheckpointError: the weights cannot be had, or do not fit.
    """
    if weights == "none":
        return
    state = _imagenet_state(encoder) if weights == "imagenet" else _state_of_file(weights)
    resnet = getattr(torchvision.models, encoder)(weights=None)
    # The classifier is cut off anyway: a file without one, or for other classes, will do.
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    try:
        missing, unexpected = resnet.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"--encoder-weights {weights}: do not fit {encoder}: {error}"
        ) from error
    missing = [name for name in missing if not name.startswith("fc.")]
    if missing or unexpected:
        raise CheckpointError(
            f"--encoder-weights {weights}: not a {encoder} of torchvision: "
            f"{len(missing)} tensors are missing ({missing[:2]}), {len(unexpected)} are unknown ({unexpected[:2]})"
        )
    target: Any = model.get_submodule("layers.0")
    body = create_body(resnet, n_in=target[0].in_channels, pretrained=True)
    target.load_state_dict(body.state_dict())


def _imagenet_state(encoder: str) -> dict[str, Any]:
    weights = torchvision.models.get_model_weights(encoder).IMAGENET1K_V1
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        name = weights.url.rsplit("/", 1)[-1]
        raise CheckpointError(
            f"--encoder-weights imagenet: torchvision's {name} could not be downloaded ({error}). Without a network, fetch "
            f"that file elsewhere and give its path, --encoder-weights /path/to/{name}, or train from scratch with "
            "--encoder-weights none"
        ) from error


def _state_of_file(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise CheckpointError(
            f"--encoder-weights {path}: no such file; give imagenet, none, or a torchvision state dict"
        )
    try:
        if path.endswith(".safetensors"):
            return dict(safetensors.torch.load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"--encoder-weights {path}: not a state dict that can be read safely: {error}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f"--encoder-weights {path}: holds a {type(state).__name__}, expected a state dict of named tensors"
        )
    return state
