import math

import pytest
import torch

from segmodel.learner import CrossEntropyDiceLoss, build_learner, change_gain, flip_and_rotate
from segmodel.metrics import EpochResult
from segmodel.models import ClassicalUnet
from segmodel.slices import SliceDataset, Statistics


def logits(p: float, shape: tuple[int, int, int]) -> torch.Tensor:
    n, h, w = shape
    return torch.stack([torch.zeros(shape), torch.full(shape, math.log(p / (1 - p)))], dim=1).reshape(n, 2, h, w)


def test_loss_is_cross_entropy_plus_one_minus_dice() -> None:
    mask = torch.zeros(1, 2, 2)
    mask[0, 0] = 1  # 2 of 4 pixels
    # p = 1/2 everywhere: cross-entropy ln 2; Dice (2 x 1 + 1) / (2 + 2 + 1) = 0.6
    assert float(CrossEntropyDiceLoss()(logits(0.5, (1, 2, 2)), mask)) == pytest.approx(math.log(2) + 0.4, abs=1e-6)


def test_loss_of_a_certain_and_right_prediction_is_zero_also_without_tumor() -> None:
    empty = torch.zeros(1, 4, 4)
    assert float(CrossEntropyDiceLoss()(logits(1e-6, (1, 4, 4)), empty)) == pytest.approx(0.0, abs=1e-4)
    assert float(CrossEntropyDiceLoss()(logits(1 - 1e-6, (1, 4, 4)), empty + 1)) == pytest.approx(0.0, abs=1e-4)


def test_augmentation_moves_image_and_mask_alike() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(16, 64, 64, dtype=torch.uint8)
    mask[:, 8:40, 20:30] = 1
    image, moved = flip_and_rotate(mask[:, None].float(), mask)
    assert ((image[:, 0] > 0.5) == (moved == 1)).float().mean() > 0.995  # bilinear and nearest differ at the rim alone
    assert moved.float().sum() / mask.float().sum() == pytest.approx(1.0, abs=0.03)
    assert sum(bool((moved[n] != mask[n]).any()) for n in range(16)) >= 12


def test_flips_alone_are_exact_mirror_images() -> None:
    torch.manual_seed(1)
    mask = torch.zeros(32, 4, 4, dtype=torch.uint8)
    mask[:, 0, 1] = 1
    _, moved = flip_and_rotate(mask[:, None].float(), mask, max_degrees=0.0)
    corners = {tuple(torch.nonzero(moved[n])[0].tolist()) for n in range(32)}
    assert corners == {(0, 1), (0, 2), (3, 1), (3, 2)}


def test_gain_scales_each_channel_of_each_slice_by_its_own_factor_within_its_limits() -> None:
    torch.manual_seed(2)
    x = torch.rand(50, 3, 4, 4) + 0.5
    factors = change_gain(x, max_gain=1.5) / x
    of_channel = factors[:, :, :1, :1]
    assert torch.allclose(factors, of_channel.expand_as(factors))
    assert 1 / 1.5 - 1e-6 <= float(of_channel.min()) < 0.75
    assert 1.4 < float(of_channel.max()) <= 1.5 + 1e-6
    assert len(of_channel.unique()) == 150


def tiny_slices(n: int) -> SliceDataset:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(n, 32, 32, dtype=torch.uint8)
    mask[:, 8:20, 8:20] = 1
    noise = torch.randint(0, 60, (n, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return SliceDataset(noise + 180 * mask[..., None], mask)


def test_a_tiny_network_learns_a_bright_square() -> None:
    torch.manual_seed(0)
    results: list[EpochResult] = []
    learner = build_learner(
        ClassicalUnet(3, width=4), tiny_slices(16), tiny_slices(5), Statistics((0.2,) * 3, (0.3,) * 3),
        batch_size=4, rank=0, world_size=1, seed=0,
        on_step=lambda step, loss: None, on_epoch=lambda result, _: results.append(result),
    )  # fmt: skip
    with learner.no_logging():
        learner.fit_one_cycle(20, lr_max=3e-3, wd=1e-2)
    assert [result.epoch for result in results] == list(range(1, 21))
    assert results[-1].dice > 0.9
    assert results[-1].train_loss < results[0].train_loss
