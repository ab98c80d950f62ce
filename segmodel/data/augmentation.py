"""Random changes to training slices, in batches, on the device; the masks move with the images.

The random numbers of a slice depend on seed, epoch and slice alone: how a slice is changed does not
depend on the worker that has it, or on the slices beside it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """How much each slice may be changed."""

    max_rotation: float
    """Degrees either way."""
    max_zoom: float
    """Factor, 1 or more, by which a slice is enlarged or shrunk."""
    max_gain: float
    """Factor, 1 or more, by which a channel becomes brighter or darker."""
    missing_sequences: float = 0.0
    """Share of slices, 0 to 1, that show FLAIR in every channel."""
    flair: int | None = None
    """Number of the FLAIR channel; without one, no sequence is taken away."""

    def __call__(
        self, x_nchw: Tensor, mask_nhw: Tensor, random_nk: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Change images and masks alike; a half of them is mirrored.

        Args:
            x_nchw: images, values from 0 up.
            mask_nhw: 0 and 1.
            random_nk: from `slice_randoms`, on the same device.
        """
        if self.flair is not None:
            x_nchw = take_sequences_away(
                x_nchw, self.flair, self.missing_sequences, random_nk[:, _LACKING]
            )
        x_nchw = change_gain(x_nchw, self.max_gain, random_nk[:, _GAINS:])
        moving_n4 = random_nk[:, _MOVING:_GAINS]
        return turn(x_nchw, mask_nhw, self.max_rotation, self.max_zoom, moving_n4)


_LACKING, _MOVING, _GAINS = 0, 1, 5
"""Which of a slice's random numbers is for what: one, four, and one for each channel."""


def slice_randoms(indices: list[int], seed: int, epoch: int, channels: int) -> Tensor:
    """Random numbers for some slices, the same for a slice whatever the others are.

    They come from numpy's counter-based Philox generator, with epoch and slice as its counter.

    Args:
        indices: of the slices.
        seed: of the training, 0 or more.
        epoch: from 0.
        channels: of the slices.

    Returns:
        float32 (N, 5 + channels), 0 to 1.
    """
    count = _GAINS + channels
    numbers = [
        np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, index])).random(
            count, dtype=np.float32
        )
        for index in indices
    ]
    return torch.from_numpy(np.array(numbers, np.float32).reshape(len(indices), count))


def take_sequences_away(x_nchw: Tensor, kept: int, share: float, random_n: Tensor) -> Tensor:
    """Replace all channels by channel `kept` in a share of the slices.

    That is how the LGG data set (Buda et al., 2019) fills in the sequences that a patient lacks.
    """
    return torch.where((random_n < share)[:, None, None, None], x_nchw[:, kept : kept + 1], x_nchw)


def turn(
    x_nchw: Tensor, mask_nhw: Tensor, max_degrees: float, max_zoom: float, random_n4: Tensor
) -> tuple[Tensor, Tensor]:
    """Each slice mirrored along either axis with probability one half, rotated and scaled about its centre.

    Image (N, C, H, W), bilinear; mask (N, H, W), nearest. What comes in from outside the image is 0. Not square slices keep
    their proportions: the rotation is one of pixels.
    """
    n, height, width, device = len(x_nchw), x_nchw.shape[-2], x_nchw.shape[-1], x_nchw.device
    angle = (2 * random_n4[:, 0] - 1) * math.radians(max_degrees)
    zoom = max_zoom ** (2 * random_n4[:, 1] - 1)
    flip = torch.where(random_n4[:, 2:4].T < 0.5, -1.0, 1.0)
    cos, sin, zero = angle.cos() / zoom, angle.sin() / zoom, torch.zeros(n, device=device)
    # First the mirror, then the rotation: each column of the matrix carries the sign of its axis.
    row_x = torch.stack([cos * flip[0], -sin * flip[1] * height / width, zero], dim=1)
    row_y = torch.stack([sin * flip[0] * width / height, cos * flip[1], zero], dim=1)
    grid = functional.affine_grid(
        torch.stack([row_x, row_y], dim=1), list(x_nchw.shape), align_corners=False
    )
    x_nchw = functional.grid_sample(x_nchw, grid, mode="bilinear", align_corners=False)
    moved = functional.grid_sample(
        mask_nhw[:, None].to(x_nchw.dtype), grid, mode="nearest", align_corners=False
    )
    return x_nchw, moved[:, 0].to(mask_nhw.dtype)


def change_gain(x_nchw: Tensor, max_gain: float, random_nc: Tensor) -> Tensor:
    """Each channel of each slice, (N, C, H, W), times its own factor between 1/`max_gain` and `max_gain`.

    MRI intensities have no unit: the same tissue is twice as bright in one scanner's images as in another's.
    """
    return x_nchw * max_gain ** (2 * random_nc[:, :, None, None] - 1)
