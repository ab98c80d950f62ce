"""What a network costs: parameters, floating-point operations, memory for its gradient."""

import torch
from torch import Tensor, nn

from segmodel.models.registry import ModelSettings, build_model


def count_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a network."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_flops(settings: ModelSettings, image_size: int) -> int:
    """Count the floating-point operations of one slice's forward pass.

    A multiplication and an addition count as two.
    """
    # Imports Triton, which no worker of a segmentation needs.
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(settings).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, settings.channels, image_size, image_size, device="meta"))
    return int(counter.get_total_flops())


def activation_bytes(settings: ModelSettings, image_size: int) -> int:
    """Bytes that one slice's forward pass in fp32 keeps for the gradient.

    The pass runs on the meta device, which follows shapes and computes nothing.
    """
    model = build_model(settings).to("meta").train()
    kept: dict[int, int] = {}
    parameters = {id(parameter) for parameter in model.parameters()}
    # Tensors stay referenced until the end, so that no id is used twice.
    tensors: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in parameters:
            kept[id(tensor)] = tensor.numel() * tensor.element_size()
            tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Two slices: in training, batch norm needs more than one value per channel.
        model(torch.empty(2, settings.channels, image_size, image_size, device="meta"))
    return sum(kept.values()) // 2
