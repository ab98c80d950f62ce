"""In which number format a network computes: float32, or bfloat16 where that is faster."""

import copy
import time
from typing import Literal

import torch
from torch import nn

from segmodel.models.checkpoint import ModelCard

Precision = Literal["bf16", "fp32"]

PROBE_SLICES = 2
PROBE_PASSES = 2
WORTH_IT = 1.1
"""bf16 is taken from this gain in speed on."""


def choose_precision(
    requested: Literal["auto", "bf16", "fp32"], use_gpu: bool, model: nn.Module, card: ModelCard
) -> Precision:
    """The format for a run.

    Args:
        requested: by the user; `auto` takes bf16 on GPUs, and on CPUs that compute in it if it is
            faster for this network and its output is finite.
        use_gpu: whether the run is on GPUs.
        model: the network, on a CPU.
        card: of the network.
    """
    if requested != "auto":
        return requested
    if use_gpu:
        return "bf16"
    return "bf16" if cpu_has_bf16() and _is_faster(model, card) else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16 (AVX512_BF16 or AMX); others would only convert."""
    found = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(found)


def in_precision(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """The network with weights in the format that it computes in.

    On a GPU the weights stay in float32 and autocast converts what gains from it.
    """
    return model.to(torch.bfloat16) if precision == "bf16" and device.type == "cpu" else model


@torch.inference_mode()
def _is_faster(model: nn.Module, card: ModelCard) -> bool:
    size = card.image_size
    x_nchw = torch.randn(PROBE_SLICES, card.model.channels, size, size)
    x_nchw = x_nchw.to(memory_format=torch.channels_last)
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        network = copy.deepcopy(model).to(memory_format=torch.channels_last).eval().to(kind)
        logits = network(x_nchw.to(kind))
        started = time.perf_counter()
        for _ in range(PROBE_PASSES):
            logits = network(x_nchw.to(kind))
        seconds[kind] = time.perf_counter() - started
    finite = bool(logits.isfinite().all())
    return finite and seconds[torch.float32] > WORTH_IT * seconds[torch.bfloat16]
