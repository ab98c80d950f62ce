"""In which number format a network computes: float32, or bfloat16 where that is faster."""

import copy
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from segmodel.models.checkpoint import ModelCard

Precision = Literal["bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

PROBE_SLICES = 2
PROBE_PASSES = 2
MIN_SPEEDUP = 1.1
"""bf16 is taken if it is faster by this factor."""


def choose_precision(
    requested: Literal["auto", "bf16", "fp32"], use_gpu: bool, model: nn.Module, card: ModelCard
) -> Precision:
    """Choose the format for a run.

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
    """Whether this CPU multiplies in bfloat16 (AVX512_BF16 or AMX); other CPUs only convert."""
    found = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(found)


def convert_precision(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """Convert the weights of a network in place to the format that it computes in.

    On a CPU in bf16, the convolutions are converted. Batch norm stays in float32: that costs no
    time, and half as many pixels come out differently. On a GPU all weights stay in float32, and
    autocast converts what gains from it.
    """
    if precision == "bf16" and device.type == "cpu":
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.to(torch.bfloat16)
    return model


def is_faster_in_bf16(compute: Callable[[Precision], Tensor]) -> bool:
    """Whether bf16 is worth it: clearly faster, and all numbers finite.

    Args:
        compute: does the same in either format.
    """
    seconds: dict[Precision, float] = {}
    finite = True
    for precision in PRECISIONS:
        compute(precision)  # the first pass is slow
        times = []
        for _ in range(PROBE_PASSES):
            started = time.perf_counter()
            finite = bool(compute(precision).isfinite().all())
            times.append(time.perf_counter() - started)
        seconds[precision] = min(times)
    return finite and seconds["fp32"] > MIN_SPEEDUP * seconds["bf16"]


@torch.inference_mode()
def _is_faster(model: nn.Module, card: ModelCard) -> bool:
    size, cpu = card.image_size, torch.device("cpu")
    x_nchw = torch.randn(PROBE_SLICES, card.model.channels, size, size)
    x_nchw = x_nchw.to(memory_format=torch.channels_last)
    inputs = {"fp32": x_nchw, "bf16": x_nchw.to(torch.bfloat16)}
    networks = {
        precision: convert_precision(copy.deepcopy(model), precision, cpu)
        .to(memory_format=torch.channels_last)
        .eval()
        for precision in PRECISIONS
    }
    return is_faster_in_bf16(lambda precision: networks[precision](inputs[precision]))
