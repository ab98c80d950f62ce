import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segmodel.core.dice import dice_of_counts
from segmodel.models.registry import ModelSettings, build_model
from segmodel.training.distributed import sum_over_workers
from segmodel.training.losses import SegmentationLoss

WORKERS, SLICES, SIZE = 2, 5, 32


def logits(p: float, shape: tuple[int, int, int]) -> torch.Tensor:
    n, h, w = shape
    return torch.stack(
        [torch.zeros(shape), torch.full(shape, math.log(p / (1 - p)))], dim=1
    ).reshape(n, 2, h, w)


def test_loss_is_cross_entropy_plus_one_minus_dice() -> None:
    mask = torch.zeros(1, 2, 2)
    mask[0, 0] = 1  # 2 of 4 pixels
    # p = 1/2 everywhere: cross-entropy ln 2; Dice (2 x 1 + 1) / (2 + 2 + 1) = 0.6
    assert float(SegmentationLoss()(logits(0.5, (1, 2, 2)), mask)) == pytest.approx(
        math.log(2) + 0.4, abs=1e-6
    )
    assert float(SegmentationLoss("ce")(logits(0.5, (1, 2, 2)), mask)) == pytest.approx(
        math.log(2), abs=1e-6
    )


def test_loss_of_a_certain_and_right_prediction_is_zero_also_without_tumor() -> None:
    empty = torch.zeros(1, 4, 4)
    assert float(SegmentationLoss()(logits(1e-6, (1, 4, 4)), empty)) == pytest.approx(0.0, abs=1e-4)
    assert float(SegmentationLoss()(logits(1 - 1e-6, (1, 4, 4)), empty + 1)) == pytest.approx(
        0.0, abs=1e-4
    )


def test_the_loss_of_a_whole_follows_from_the_sums_of_its_parts() -> None:
    torch.manual_seed(0)
    x, mask, loss = torch.randn(4, 2, 8, 8), torch.randint(2, (4, 8, 8)), SegmentationLoss()
    parts = loss.sums(x[:1], mask[:1]) + loss.sums(x[1:], mask[1:])
    assert float(loss.from_sums(parts)) == pytest.approx(float(loss(x, mask)), rel=1e-6)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(SLICES, SIZE, SIZE, dtype=torch.long)
    for number in range(SLICES):
        mask[number, : 4 * number, 4:20] = 1  # the first slice has no tumor
    return torch.randn(SLICES, 3, SIZE, SIZE, generator=generator, dtype=torch.float64), mask


def frozen_model() -> nn.Module:
    torch.manual_seed(0)
    return (
        build_model(ModelSettings(arch="dynamic", channels=3, encoder="resnet18")).eval().double()
    )  # batch norm frozen


def counts(model: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> list[float]:
    with torch.no_grad():
        predicted = model(x).argmax(dim=1) == 1
    return [float((predicted & (mask == 1)).sum()), float(predicted.sum()), float(mask.sum())]


def one_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS
    )
    x, mask = batch()
    own = np.array_split(np.arange(SLICES), WORKERS)[rank]  # 3 slices and 2
    model = DistributedDataParallel(frozen_model())
    loss = SegmentationLoss()(model(x[own]), mask[own])
    loss.backward()
    dice = dice_of_counts(*sum_over_workers(counts(model.module, x[own], mask[own])))
    if rank == 0:
        torch.save(
            {
                "loss": float(loss.detach()),
                "dice": dice,
                "gradients": [p.grad.as_subclass(torch.Tensor) for p in model.parameters()],
            },
            f"{folder}/found.pt",
        )
    dist.destroy_process_group()


def test_two_workers_have_the_loss_gradient_and_dice_of_one_with_the_whole_batch(
    tmp_path: Path,
) -> None:
    torch.multiprocessing.spawn(one_worker, args=(str(tmp_path),), nprocs=WORKERS)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    x, mask = batch()
    model = frozen_model()
    loss = SegmentationLoss()(model(x), mask)
    loss.backward()
    assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert found["dice"] == dice_of_counts(*counts(model, x, mask))
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    assert largest > 1e-3
    for parameter, gradient in zip(model.parameters(), found["gradients"], strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-6 * largest)
