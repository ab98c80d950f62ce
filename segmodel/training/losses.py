"""The loss of a training."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from segmodel.models.classes import TUMOR
from segmodel.training.distributed import world_size


class SegmentationLoss(nn.Module):
    """Mean cross-entropy of all voxels of the batch, plus 1 - soft Dice of the tumor.

    The batch is that of all workers together: each worker gives logits (N, 2, H, W) and masks
    (N, H, W) of 0 and 1 of its own slices, N of any size, and all get the loss of the whole batch.
    DistributedDataParallel averages gradients over the workers; the gradients here are scaled so
    that their average is the gradient of that loss.

    Source of the Dice term: Milletari et al., "V-Net", 3DV 2016.

    Args:
        kind: `ce+dice`, or `ce` for the cross-entropy alone.
    """

    smooth = 1.0
    """Voxels added to both sides of the Dice ratio: without tumor it is 1 and not 0/0."""

    def __init__(self, kind: Literal["ce+dice", "ce"] = "ce+dice") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, logits_nchw: Tensor, mask_nhw: Tensor) -> Tensor:
        """A scalar, 0 for a perfect prediction; the same on all workers."""
        own = self.sums(logits_nchw, mask_nhw)
        # In validation, workers may have unequal numbers of batches: nothing is exchanged.
        workers = world_size() if torch.is_grad_enabled() else 1
        total = own
        if workers > 1:
            everywhere = own.detach().clone()
            dist.all_reduce(everywhere)
            # The value is that of all workers, the gradient that of the own slices.
            total = everywhere + own - own.detach()
        loss = self.from_sums(total)
        # The value stays; the gradient is multiplied, because an average over workers follows.
        return loss * workers - loss.detach() * (workers - 1)

    def sums(self, logits_nchw: Tensor, mask_nhw: Tensor) -> Tensor:
        """Sums over voxels that `from_sums` needs, (5,); those of several batches can be added."""
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

    def from_sums(self, total: Tensor) -> Tensor:
        """The loss, a scalar, of the voxels that `sums` summed."""
        cross_entropy, overlap, predicted, truth, voxels = total
        loss: Tensor = cross_entropy / voxels
        if self.kind == "ce+dice":
            loss = loss + 1 - (2 * overlap + self.smooth) / (predicted + truth + self.smooth)
        return loss
