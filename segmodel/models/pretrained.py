"""Loads pretrained weights into the encoder of a DynamicUnet."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from fastai.vision.learner import create_body
from torch import nn

from segmodel.core.errors import CheckpointError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_encoder(model: nn.Module, encoder: str, weights: str) -> None:
    """Load pretrained weights into the encoder of a DynamicUnet, in place.

    Args:
        model: from `build_model`.
        encoder: name of the ResNet.
        weights: `imagenet`, `none` (nothing happens), or the path of a torchvision state dict.

    Raises:
        CheckpointError: the weights cannot be downloaded or read, or do not fit.
    """
    if weights == "none":
        return
    state = _imagenet_state(encoder) if weights == "imagenet" else _state_of_file(weights)
    resnet = getattr(torchvision.models, encoder)(weights=None)
    # The classifier is not used: a file may lack it, or have one for other classes.
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
            f"{len(missing)} tensors are missing ({missing[:2]}), "
            f"{len(unexpected)} are unknown ({unexpected[:2]})"
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
            f"--encoder-weights imagenet: torchvision's {name} could not be downloaded ({error}). "
            "Without a network, fetch that file elsewhere and give its path, "
            f"--encoder-weights /path/to/{name}, or train from scratch with --encoder-weights none"
        ) from error


def _state_of_file(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise CheckpointError(
            f"--encoder-weights {path}: no such file; "
            "give imagenet, none, or a torchvision state dict"
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
            f"--encoder-weights {path}: holds a {type(state).__name__}, "
            "expected a state dict of named tensors"
        )
    return state
