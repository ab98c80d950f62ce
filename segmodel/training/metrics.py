"""Validation metrics, from sums over all batches of all workers: their number changes nothing."""

from collections.abc import Callable
from typing import Any

import torch
from fastai.learner import Learner, Metric
from torch import Tensor

from segmodel.core.dice import PatientDice, dice_of_counts
from segmodel.models.classes import TUMOR
from segmodel.training.distributed import sum_over_workers
from segmodel.training.losses import SegmentationLoss


class SummedMetric(Metric):
    """Sums of numbers over all batches of all workers, and a value computed from the sums.

    Args:
        name: under which it is reported.
        count: how many sums there are.
        of_batch: the summands of a batch, (count,), on the device.
        value: computes the metric from the sums.
    """

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
        """Add a batch, on its device."""
        self.sums = self.sums.to(learn.y.device) + self.of_batch(learn)

    @property
    def value(self) -> Any:
        """The metric of the epoch; every worker must ask for it."""
        return self._value(sum_over_workers(self.sums.tolist()))

    @property
    def name(self) -> str:
        """Under which it is reported."""
        return self._name


def dice_metric() -> SummedMetric:
    """Dice of all validation voxels together, at a probability of one half."""

    def counts(learn: Learner) -> Tensor:
        return _counts_n3(learn).sum(dim=0)

    return SummedMetric("dice", 3, counts, lambda sums: dice_of_counts(*sums))


def patient_dice_metric(patient_n: Tensor, patients: int) -> SummedMetric:
    """A `PatientDice` of each patient's voxels, at a probability of one half.

    Args:
        patient_n: number of the patient of each validation slice, on the device.
        patients: how many there are.
    """

    def counts(learn: Learner) -> Tensor:
        counts_n3 = _counts_n3(learn)
        sums = torch.zeros(patients, 3, dtype=torch.float64, device=counts_n3.device)
        return sums.index_add_(0, patient_n[learn.rows_n], counts_n3).flatten()

    def value(sums: list[float]) -> list[PatientDice]:
        by_patient = [sums[start : start + 3] for start in range(0, len(sums), 3)]
        return [PatientDice(dice_of_counts(*counts), int(counts[2])) for counts in by_patient]

    return SummedMetric("patient_dice", 3 * patients, counts, value)


def loss_metric(loss: SegmentationLoss) -> SummedMetric:
    """The loss of all validation voxels together."""

    def sums(learn: Learner) -> Tensor:
        return loss.sums(learn.pred, learn.y).double()

    def value(sums: list[float]) -> float:
        return float(loss.from_sums(torch.tensor(sums, dtype=torch.float64)))

    return SummedMetric("loss", 5, sums, value)


def _counts_n3(learn: Learner) -> Tensor:
    """Voxels of the overlap, the prediction and the truth of each slice, (N, 3)."""
    predicted, truth = learn.pred.argmax(dim=1) == TUMOR, learn.y == 1
    return torch.stack(
        [voxels.sum(dim=(1, 2)) for voxels in (predicted & truth, predicted, truth)], dim=1
    ).double()
