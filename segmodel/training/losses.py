"""The loss and the metrics of a training: sums over all workers, so that their number changes no result."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from fastai.learner import Learner, Metric
from torch import Tensor, nn
from torch.nn import functional

from segmodel.core.dice import PatientDice, dice_of_counts
from segmodel.models.classes import TUMOR


class SegmentationLoss(nn.Module):
    """Mean cross-entropy of all voxels of the batch, plus 1 - soft Dice of the tumor over the batch.

    The batch is that of all workers together: each takes logits (N, 2, H, W) and a mask (N, H, W) of 0 and 1 of its own slices,
    N of any size, and all get the loss of the whole. The gradients are such that their mean over the workers, which is what
    DistributedDataParallel takes, is the gradient of that loss.

    Source of the Dice term: Milletari et al., "V-Net", 3DV 2016.

    Args:
        kind: `ce+dice`, or `ce` for the cross-entropy alone.
    """

    smooth = 1.0
    """Voxels added to both sides of the ratio, so that a batch without tumor has a loss of 0 and not 0/0."""

    def __init__(self, kind: Literal["ce+dice", "ce"] = "ce+dice") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, logits_nchw: Tensor, mask_nhw: Tensor) -> Tensor:
        """A scalar, 0 for a perfect prediction; the same on all workers."""
        own = self.sums(logits_nchw, mask_nhw)
        workers = (
            world_size() if torch.is_grad_enabled() else 1
        )  # in validation each worker has its own number of batches
        total = own
        if workers > 1:
            everywhere = own.detach().clone()
            dist.all_reduce(everywhere)
            total = (
                everywhere + own - own.detach()
            )  # the value of the whole, the gradient of the own part
        loss = self.of_sums(total)
        return loss * workers - loss.detach() * (
            workers - 1
        )  # value: loss; gradient: workers times, since a mean follows

    def sums(self, logits_nchw: Tensor, mask_nhw: Tensor) -> Tensor:
        """What `of_sums` needs of some slices, (5,): sums over their voxels, so that those of several batches can be added."""
        logits_nchw = logits_nchw.to(torch.promote_types(logits_nchw.dtype, torch.float32))
        mask_nhw = mask_nhw.long()
        probability_nhw = logits_nchw.softmax(dim=1)[:, TUMOR]
        return torch.stack(
            [
                functional.cross_entropy(logits_nchw, mask_nhw, reduction="sum"),
                (probability_nhw * mask_nhw).sum(),
                probability_nhw.sum(),
                mask_nhw.sum().to(logits_nchw.dtype),
                logits_nchw.new_full((), mask_nhw.numel()),
            ]
        )

    def of_sums(self, total: Tensor) -> Tensor:
        """The loss, a scalar, of the voxels that were summed."""
        cross_entropy, overlap, predicted, truth, voxels = total
        loss: Tensor = cross_entropy / voxels
        if self.kind == "ce+dice":
            loss = loss + 1 - (2 * overlap + self.smooth) / (predicted + truth + self.smooth)
        return loss


class SummedMetric(Metric):
    """Numbers summed over all batches of all workers, and what they come to."""

    def __init__(
        self,
        name: str,
        count: int,
        of_batch: Callable[[Learner], Tensor],
        value: Callable[[list[float]], Any],
    ) -> None:
        self._name, self.count, self.of_batch, self._value = name, count, of_batch, value

    def reset(self) -> None:
        """Start an epoch."""
        self.sums: Tensor = torch.zeros(self.count, dtype=torch.float64)

    def accumulate(self, learn: Learner) -> None:
        """Add a batch, on the device that it is on."""
        self.sums = self.sums.to(learn.y.device) + self.of_batch(learn)

    @property
    def value(self) -> Any:
        """Of the epoch; every worker must ask for it."""
        return self._value(sum_over_workers(self.sums.tolist()))

    @property
    def name(self) -> str:
        """Under which it is reported."""
        return self._name


def dice_metric() -> SummedMetric:
    """Dice of all validation voxels together, at probability one half."""

    def counts(learn: Learner) -> Tensor:
        return _counts_n3(learn).sum(dim=0)

    return SummedMetric("dice", 3, counts, lambda sums: dice_of_counts(*sums))


def patient_dice_metric(patient_n: Tensor, patients: int) -> SummedMetric:
    """A `PatientDice` of each patient's voxels, at probability one half.

    Args:
        patient_n: number of the patient of each validation slice, on the device.
        patients: how many there are.
    """

    def counts(learn: Learner) -> Tensor:
        own = _counts_n3(learn)
        sums = torch.zeros(patients, 3, dtype=torch.float64, device=own.device)
        return sums.index_add_(0, patient_n[learn.rows_n], own).flatten()

    def value(sums: list[float]) -> list[PatientDice]:
        own = [sums[start : start + 3] for start in range(0, len(sums), 3)]
        return [PatientDice(dice_of_counts(*counts), int(counts[2])) for counts in own]

    return SummedMetric("patient_dice", 3 * patients, counts, value)


def loss_metric(loss: SegmentationLoss) -> SummedMetric:
    """The loss of all validation voxels together."""

    def sums(learn: Learner) -> Tensor:
        return loss.sums(learn.pred, learn.y).double()

    return SummedMetric(
        "loss",
        5,
        sums,
        lambda totals: float(loss.of_sums(torch.tensor(totals, dtype=torch.float64))),
    )


def sum_over_workers(numbers: list[float]) -> list[float]:
    """Each number summed over all workers; every worker must call it, and gets the same."""
    if world_size() == 1:
        return numbers
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )
    tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def world_size() -> int:
    """Workers of this training."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _counts_n3(learn: Learner) -> Tensor:
    """Voxels of the overlap, the prediction and the truth of each slice, (N, 3)."""
    predicted, truth = learn.pred.argmax(dim=1) == TUMOR, learn.y == 1
    return torch.stack(
        [voxels.sum(dim=(1, 2)) for voxels in (predicted & truth, predicted, truth)], dim=1
    ).double()
