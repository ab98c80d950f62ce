"""Batched inference: slices as bytes in, masks out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segmodel.checkpoint import ModelCard
from segmodel.errors import ArchiveError
from segmodel.models import TUMOR
from segmodel.slices import normalise, pad_to_multiple, pixels_to_nchw, resize


@dataclass(frozen=True)
class Prediction:
    """What the model says of N slices."""

    mask_nhw: npt.NDArray[np.bool_]
    tumor_pixels_n: npt.NDArray[np.int64]
    mean_probability_n: npt.NDArray[np.float32]
    """Mean tumor probability over the pixels of the mask; NaN where the mask is empty."""
    uncertainty_n: npt.NDArray[np.float32]
    """Mean entropy of a pixel's prediction over the slice, in bits: 0 certain, 1 a coin toss everywhere."""


class Predictor:
    """A loaded model, ready to segment.

    Slices are scaled as in training, padded to what the network takes, and the probabilities are scaled back to the slice's own
    size before the threshold. Every forward pass has `batch_size` slices, the last one padded with empty ones, so that the
    device sees one shape. bfloat16 on CUDA, float32 elsewhere.

    Args:
        model: in evaluation mode.
        card: of the model.
        batch_size: slices a forward pass.
        threshold: a pixel is tumor where its probability is greater.
        device: where to run.
    """

    def __init__(self, model: nn.Module, card: ModelCard, *, batch_size: int, threshold: float, device: torch.device) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()
        self.card, self.batch_size, self.threshold, self.device = card, batch_size, threshold, device
        self.mean = torch.tensor(card.mean, device=device)
        self.std = torch.tensor(card.std, device=device)

    @torch.inference_mode()
    def predict(self, pixels_nhwc: npt.NDArray[np.uint8]) -> Prediction:
        """Segment slices of one size, at most `batch_size` of them.

        Args:
            pixels_nhwc: uint8 (N, H, W, C), C as the model was trained on.

        Raises:
            ArchiveError: another number of channels.
        """
        n, height, width, channels = pixels_nhwc.shape
        if channels != self.card.model.channels:
            raise ArchiveError(f"slices have {channels} channels, the model was trained on {self.card.model.channels}")
        if n > self.batch_size:
            raise ValueError(f"{n} slices do not fit a batch of {self.batch_size}")
        full_nhwc = np.zeros((self.batch_size, height, width, channels), dtype=np.uint8)
        full_nhwc[:n] = pixels_nhwc
        probability_nhw = self._probability(torch.from_numpy(full_nhwc).to(self.device))[:n]

        mask_nhw = probability_nhw > self.threshold
        tumor_pixels_n = mask_nhw.sum(dim=(1, 2))
        mean_probability_n = (probability_nhw * mask_nhw).sum(dim=(1, 2)) / tumor_pixels_n
        return Prediction(
            mask_nhw=mask_nhw.cpu().numpy(),
            tumor_pixels_n=tumor_pixels_n.cpu().numpy(),
            mean_probability_n=mean_probability_n.cpu().numpy(),
            uncertainty_n=_entropy_bits(probability_nhw).mean(dim=(1, 2)).cpu().numpy(),
        )

    def _probability(self, pixels_nhwc: Tensor) -> Tensor:
        """Tumor probability, float32 (N, H, W)."""
        height, width = pixels_nhwc.shape[1:3]
        scaled_nchw = pixels_to_nchw(pixels_nhwc, self.card.image_size)
        x_nchw = normalise(pad_to_multiple(scaled_nchw), self.mean, self.std)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            logits_nchw = self.model(x_nchw)
        probability_nchw = logits_nchw.float().softmax(dim=1)[:, TUMOR : TUMOR + 1]
        cropped_nchw = probability_nchw[..., : scaled_nchw.shape[-2], : scaled_nchw.shape[-1]]
        return resize(cropped_nchw, height, width)[:, 0]


def _entropy_bits(p: Tensor) -> Tensor:
    entropy: Tensor = (torch.special.entr(p) + torch.special.entr(1 - p)) / np.log(2)
    return entropy
