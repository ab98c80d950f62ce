"""The two networks: fastai's DynamicUnet over a ResNet, and the classical U-Net.

Both take float (N, C, H, W), normalised, H and W multiples of 32, and give logits (N, 2, H, W): background, tumor.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from fastai.layers import MergeLayer, ToTensorBase
from fastai.vision.learner import create_body
from fastai.vision.models.unet import DynamicUnet, ResizeToOrig, UnetBlock
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from segmodel.config import SIZE_MULTIPLE
from segmodel.errors import CheckpointError

TUMOR = 1
CLASSES = 2
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
    if settings.arch == "dynamic" and settings.encoder is not None and hasattr(torchvision.models, settings.encoder):
        # The body of a ResNet without weights: `load_encoder` brings them, also into a body with other input channels.
        resnet = getattr(torchvision.models, settings.encoder)(weights=None)
        body = create_body(resnet, n_in=settings.channels, pretrained=False)
        # The image size only decides how often to upsample, which is the same for every multiple of 32.
        return HookFreeUnet(DynamicUnet(body, CLASSES, (2 * SIZE_MULTIPLE, 2 * SIZE_MULTIPLE)))
    raise CheckpointError(f"unknown network: arch {settings.arch!r}, encoder {settings.encoder!r}")


class HookFreeUnet(nn.Module):
    """fastai's DynamicUnet with its skip connections passed from hand to hand instead of left on hooks.

    It takes the layers of a DynamicUnet over: the same names in the state dict, the same logits to the bit. What hooks forbid
    is then possible: several threads on one network, `torch.compile`, export.

    Args:
        unet: DynamicUnet over an encoder that is an `nn.Sequential`; not to be used any more.
    """

    def __init__(self, unet: DynamicUnet) -> None:
        super().__init__()
        self.layers: nn.ModuleList = unet.layers
        encoder = list(self.layers[0].children())
        # Which parts of the encoder each UnetBlock takes its skip connection from, in the order of the blocks.
        self.skips = [
            next(index for index, part in enumerate(encoder) if hook.hook.id in part._forward_hooks) for hook in unet.sfs
        ]
        unet.sfs.remove()

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Logits (N, 2, H, W)."""
        size, y_nchw = x_nchw.shape[-2:], x_nchw
        kept: dict[int, Tensor] = {}
        for index, part in enumerate(self.layers[0].children()):
            y_nchw = part(y_nchw)
            if index in self.skips:
                kept[index] = y_nchw
        blocks = iter(self.skips)
        for layer in self.layers[1:]:
            if isinstance(layer, UnetBlock):
                y_nchw = _up(layer, y_nchw, kept[next(blocks)])
            elif isinstance(layer, ResizeToOrig):
                y_nchw = _resize_nearest(y_nchw, size)
            elif isinstance(layer, MergeLayer):
                y_nchw = torch.cat([y_nchw, x_nchw], dim=1)
            elif not isinstance(layer, ToTensorBase):
                y_nchw = layer(y_nchw)
        return y_nchw


def _up(block: UnetBlock, low_nchw: Tensor, skip_nchw: Tensor) -> Tensor:
    """One step up: the deeper activations enlarged, beside those of the encoder, through the block's convolutions."""
    high_nchw = _resize_nearest(block.shuf(low_nchw), skip_nchw.shape[-2:])
    both: Tensor = block.relu(torch.cat([high_nchw, block.bn(skip_nchw)], dim=1))
    merged: Tensor = block.conv2(block.conv1(both))
    return merged


def _resize_nearest(x_nchw: Tensor, size: torch.Size) -> Tensor:
    return x_nchw if x_nchw.shape[-2:] == size else functional.interpolate(x_nchw, size, mode="nearest")


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
            _double_conv(before, after) for before, after in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * after, after, 2, stride=2) for after in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_double_conv(2 * after, after) for after in reversed(widths[:-1]))
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
        raise CheckpointError(f"--encoder-weights {weights}: do not fit {encoder}: {error}") from error
    missing = [name for name in missing if not name.startswith("fc.")]
    if missing or unexpected:
        raise CheckpointError(
            f"--encoder-weights {weights}: not a {encoder} of torchvision: "
            f"{len(missing)} tensors are missing ({missing[:2]}), {len(unexpected)} are unknown ({unexpected[:2]})"
        )
    target: Any = model.get_submodule("layers.0")
    body = create_body(resnet, n_in=target[0].in_channels, pretrained=True)
    target.load_state_dict(body.state_dict())


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_flops(settings: ModelSettings, image_size: int) -> int:
    """Floating-point operations of one slice's forward pass; a multiplication and an addition are two."""
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
        raise CheckpointError(f"--encoder-weights {path}: no such file; give imagenet, none, or a torchvision state dict")
    try:
        if path.endswith(".safetensors"):
            return dict(safetensors.torch.load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"--encoder-weights {path}: not a state dict that can be read safely: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f"--encoder-weights {path}: holds a {type(state).__name__}, expected a state dict of named tensors"
        )
    return state


def _double_conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1),
        nn.ReLU(inplace=True),
    )
