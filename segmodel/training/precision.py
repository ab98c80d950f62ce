"""Chooses the number format of a training: once, for all workers, and for all resumptions."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from segmodel.data.dataset import SliceDataset
from segmodel.data.preprocessing import ChannelStatistics, normalise
from segmodel.inference.precision import Precision, cpu_has_bf16, is_faster_in_bf16
from segmodel.models.checkpoint import TrainerState
from segmodel.settings.training import RecipeConfig
from segmodel.training.distributed import sum_over_workers

PROBE_SLICES = 2
"""Batch norm needs two if the encoder leaves one pixel per slice."""


def choose_precision(
    config: RecipeConfig,
    state: TrainerState | None,
    model: nn.Module,
    train: SliceDataset,
    statistics: ChannelStatistics,
    device: torch.device,
) -> Precision:
    """Choose the format of the forward pass; all workers must call this and get the same.

    `auto` keeps the format of a training that resumes. Otherwise it is bf16 on GPUs, and on CPUs if
    those of all workers support it and are faster with it.

    Args:
        config: the request.
        state: of a training that resumes.
        model: with the weights that the training begins with, on the CPU.
        train: slices to look at.
        statistics: of the slices.
        device: of this worker.
    """
    if config.precision != "auto":
        return config.precision
    if state is not None:
        return state.precision
    if device.type == "cuda":
        return "bf16"
    faster = cpu_has_bf16() and _is_faster(model, train, statistics)
    return "bf16" if sum_over_workers([float(not faster)])[0] == 0 else "fp32"


def _is_faster(model: nn.Module, train: SliceDataset, statistics: ChannelStatistics) -> bool:
    pixels_nhwc, mask_nhw, _ = train[list(range(min(PROBE_SLICES, len(train))))]
    mean, std = torch.tensor(statistics.mean), torch.tensor(statistics.std)
    x_nchw = normalise(pixels_nhwc.permute(0, 3, 1, 2).float(), mean, std)
    x_nchw = x_nchw.contiguous(memory_format=torch.channels_last)
    network = copy.deepcopy(model).to(memory_format=torch.channels_last).train()

    def step(precision: Precision) -> Tensor:
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits_nchw = network(x_nchw)
        loss = functional.cross_entropy(logits_nchw.float(), mask_nhw.long())
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.stack([p.grad.sum() for p in network.parameters() if p.grad is not None])

    return is_faster_in_bf16(step)
