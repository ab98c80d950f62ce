"""fastai's Learner over plain tensors: loss, augmentation on the device, Dice summed over all workers."""

import math
import time
from collections.abc import Callable

import fastai.callback.schedule  # noqa: F401 - gives Learner its fit_one_cycle
import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner, Metric
from fastai.optimizer import Adam
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from segmodel.errors import TrainingError
from segmodel.metrics import EpochResult, dice_of_counts
from segmodel.models import TUMOR
from segmodel.slices import GlobalBatches, Portion, SliceDataset, Statistics, normalise

MAX_ROTATION_DEGREES = 15.0
MAX_GAIN = 1.5


class CrossEntropyDiceLoss(nn.Module):
    """Cross-entropy plus 1 - soft Dice of the tumor over the batch.

    Takes logits (N, 2, H, W) and a mask (N, H, W) of 0 and 1.
    """

    smooth = 1.0
    """Voxels added to both sides of the ratio, so that a batch without tumor has a loss of 0 and not 0/0."""

    def forward(self, logits_nchw: Tensor, mask_nhw: Tensor) -> Tensor:
        """A scalar, 0 for a perfect prediction."""
        logits_nchw, mask_nhw = logits_nchw.float(), mask_nhw.long()
        probability_nhw = logits_nchw.softmax(dim=1)[:, TUMOR]
        intersection = (probability_nhw * mask_nhw).sum()
        dice = (2 * intersection + self.smooth) / (probability_nhw.sum() + mask_nhw.sum() + self.smooth)
        return functional.cross_entropy(logits_nchw, mask_nhw) + 1 - dice


def flip_and_rotate(x_nchw: Tensor, mask_nhw: Tensor, max_degrees: float = MAX_ROTATION_DEGREES) -> tuple[Tensor, Tensor]:
    """Each slice flipped along either axis with probability one half, and rotated by up to `max_degrees` either way.

    Image (N, C, H, W), bilinear; mask (N, H, W), nearest. What comes in from outside the image is 0.
    """
    n, device = len(x_nchw), x_nchw.device
    angle = (2 * torch.rand(n, device=device) - 1) * math.radians(max_degrees)
    flip_xy = 1.0 - 2.0 * torch.randint(2, (2, n), device=device)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(n, device=device)
    theta = torch.stack(
        [torch.stack([cos * flip_xy[0], -sin, zero], dim=1), torch.stack([sin, cos * flip_xy[1], zero], dim=1)], dim=1
    )
    grid = functional.affine_grid(theta, list(x_nchw.shape), align_corners=False)
    x_nchw = functional.grid_sample(x_nchw, grid, mode="bilinear", align_corners=False)
    turned = functional.grid_sample(mask_nhw[:, None].to(x_nchw.dtype), grid, mode="nearest", align_corners=False)
    return x_nchw, turned[:, 0].to(mask_nhw.dtype)


def change_gain(x_nchw: Tensor, max_gain: float = MAX_GAIN) -> Tensor:
    """Each channel of each slice, (N, C, H, W), times its own factor between 1/`max_gain` and `max_gain`.

    MRI intensities have no unit: the same tissue is twice as bright in one scanner's images as in another's.
    """
    exponent = 2 * torch.rand(*x_nchw.shape[:2], 1, 1, device=x_nchw.device) - 1
    return x_nchw * max_gain**exponent


class Batches(Callback):
    """Bytes as they come from the archive become the network's input, on the device; augmented while training."""

    order = -10

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics

    def before_batch(self) -> None:
        pixels_nhwc, mask_nhw = self.learn.xb[0], self.learn.yb[0]
        x_nchw = pixels_nhwc.permute(0, 3, 1, 2).float()
        if self.training:
            x_nchw, mask_nhw = flip_and_rotate(change_gain(x_nchw), mask_nhw)
        mean, std = (x_nchw.new_tensor(values) for values in (self.statistics.mean, self.statistics.std))
        self.learn.xb, self.learn.yb = (normalise(x_nchw, mean, std),), (mask_nhw.long(),)


class SummedMetric(Metric):
    """Numbers summed over all batches of all workers, and what they come to."""

    def __init__(self, name: str, of_batch: Callable[[Learner], list[float]], value: Callable[[list[float]], float]) -> None:
        self._name, self.of_batch, self._value = name, of_batch, value

    def reset(self) -> None:
        self.sums: list[float] = []

    def accumulate(self, learn: Learner) -> None:
        numbers = self.of_batch(learn)
        self.sums = [a + b for a, b in zip(self.sums, numbers, strict=True)] if self.sums else numbers

    @property
    def value(self) -> float:
        return self._value(sum_over_workers(self.sums))

    @property
    def name(self) -> str:
        return self._name


def dice_metric() -> SummedMetric:
    """Dice of all validation voxels together, at probability one half."""

    def counts(learn: Learner) -> list[float]:
        predicted, truth = learn.pred.argmax(dim=1) == TUMOR, learn.y == 1
        return torch.stack([(predicted & truth).sum(), predicted.sum(), truth.sum()]).double().tolist()

    return SummedMetric("dice", counts, lambda sums: dice_of_counts(*sums))


def loss_metric() -> SummedMetric:
    """Validation loss, each slice counted once."""

    def weighted(learn: Learner) -> list[float]:
        return [float(learn.loss.detach()) * len(learn.y), float(len(learn.y))]

    return SummedMetric("loss", weighted, lambda sums: sums[0] / sums[1])


def sum_over_workers(numbers: list[float]) -> list[float]:
    """Each number summed over all workers; every worker must call it, and gets the same."""
    if not dist.is_initialized():
        return numbers
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


class ValidateAlike(Callback):
    """All workers validate one and the same network.

    Batch norm's running statistics differ from worker to worker after a step; the first worker's, which are the ones that are
    saved, go to all. Validation then bypasses DistributedDataParallel, since workers may have different numbers of batches.
    """

    order = -20

    def before_validate(self) -> None:
        self._wrapped = self.learn.model
        if isinstance(self._wrapped, DistributedDataParallel):
            for buffer in self._wrapped.module.buffers():
                dist.broadcast(buffer, src=0)
            self.learn.model = self._wrapped.module

    def after_validate(self) -> None:
        self.learn.model = self._wrapped


class StopOnNan(Callback):
    """A loss that is no number ends the training with a message."""

    def after_loss(self) -> None:
        if self.training and not torch.isfinite(self.learn.loss_grad):
            raise TrainingError(
                f"the loss became {float(self.learn.loss_grad.detach())} in epoch {self.epoch + 1}, step {self.iter + 1}; "
                "train with a smaller --lr"
            )


class Reports(Callback):
    """Calls `on_step` after every training step and `on_epoch` after every validation."""

    order = 60  # after fastai's Recorder (50), which computes the metrics

    def __init__(self, on_step: Callable[[int, float], None], on_epoch: Callable[[EpochResult, Learner], None]) -> None:
        self.on_step, self.on_epoch = on_step, on_epoch

    def before_epoch(self) -> None:
        self.started = time.monotonic()
        self.losses: list[float] = []

    def after_batch(self) -> None:
        if self.training:
            self.losses.append(float(self.learn.loss.detach()))
            self.on_step(self.learn.train_iter, self.losses[-1])

    def after_epoch(self) -> None:
        loss_sum, steps = sum_over_workers([sum(self.losses), float(len(self.losses))])
        metrics = {metric.name: metric.value for metric in self.learn.metrics}
        seconds = time.monotonic() - self.started
        result = EpochResult(self.epoch + 1, loss_sum / steps, metrics["loss"], metrics["dice"], seconds)
        self.on_epoch(result, self.learn)


def build_learner(
    model: nn.Module,
    train: SliceDataset,
    valid: SliceDataset,
    statistics: Statistics,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    on_step: Callable[[int, float], None],
    on_epoch: Callable[[EpochResult, Learner], None],
) -> Learner:
    """A Learner for one of `world_size` workers; `batch_size` counts the slices of all workers together."""
    loaders = DataLoaders(
        DataLoader(train, sampler=GlobalBatches(len(train), batch_size, rank, world_size, seed), batch_size=None),
        DataLoader(valid, sampler=Portion(len(valid), batch_size // world_size, rank, world_size), batch_size=None),
    )
    learner = Learner(
        loaders,
        model,
        loss_func=CrossEntropyDiceLoss(),
        opt_func=Adam,
        metrics=[loss_metric(), dice_metric()],
        cbs=[Batches(statistics), ValidateAlike(), StopOnNan(), Reports(on_step, on_epoch)],
    )
    # fastai's bars redraw a line many times a second, which floods a job's log.
    learner.remove_cbs([cb for cb in learner.cbs if type(cb).__name__ == "ProgressCallback"])
    return learner
