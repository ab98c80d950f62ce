"""Random changes to training slices, in batches, on the device; masks are rotated with the images.

The random numbers of a slice depend on seed, epoch and slice alone: the change of a slice depends
neither on its worker nor on the other slices of its batch.
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
    """Degrees, in either direction."""
    max_zoom: float
    """Factor, 1 or more, by which a slice is enlarged or shrunk at most."""
    max_gain: float
    """Factor, 1 or more, by which a channel becomes brighter or darker at most."""
    missing_sequences: float = 0.0
    """Share of slices, 0 to 1, that show FLAIR in every channel."""
    flair: int | None = None
    """Number of the FLAIR channel; without one, `missing_sequences` is ignored."""

    @staticmethod
    def count_random_numbers(channels: int) -> int:
        """Random numbers that a slice of so many channels needs."""
        return _GAINS + channels

    def __call__(
        self, x_nchw: Tensor, mask_nhw: Tensor, random_nk: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Change the images, and rotate and flip the masks with them.

        Args:
            x_nchw: images, values from 0 up.
            mask_nhw: 0 and 1.
            random_nk: 0 to 1, K = `count_random_numbers(C)`, on the same device.
        """
        if self.flair is not None:
            x_nchw = remove_sequences(
                x_nchw, self.flair, self.missing_sequences, random_nk[:, _MISSING]
            )
        x_nchw = scale_intensity(x_nchw, self.max_gain, random_nk[:, _GAINS:])
        geometry_n4 = random_nk[:, _GEOMETRY:_GAINS]
        return rotate_and_flip(x_nchw, mask_nhw, self.max_rotation, self.max_zoom, geometry_n4)


_MISSING, _GEOMETRY, _GAINS = 0, 1, 5
"""Columns of the random numbers: one, then four, then one per channel."""


def slice_random_numbers(indices: list[int], seed: int, epoch: int, count: int) -> Tensor:
    """Random numbers for some slices; those of a slice do not depend on the other slices.

    They come from numpy's counter-based Philox generator: the seed is its key, epoch and slice are
    its counter.

    Args:
        indices: of the slices.
        seed: of the training, 0 or more.
        epoch: from 0.
        count: numbers per slice.

    Returns:
        float32 (N, count), 0 to 1.
    """
    numbers_nk = np.empty((len(indices), count), np.float32)
    for row, index in zip(numbers_nk, indices, strict=True):
        generator = np.random.Philox(key=seed, counter=[0, 0, epoch, index])
        np.random.Generator(generator).random(out=row, dtype=np.float32)
    return torch.from_numpy(numbers_nk)


def remove_sequences(x_nchw: Tensor, kept: int, share: float, random_n: Tensor) -> Tensor:
    """Replace all channels by channel `kept` in a share of the slices.

    The LGG data set (Buda et al., 2019) fills in missing sequences like this.
    """
    return torch.where((random_n < share)[:, None, None, None], x_nchw[:, kept : kept + 1], x_nchw)


def scale_intensity(x_nchw: Tensor, max_gain: float, random_nc: Tensor) -> Tensor:
    """Multiply each channel of each slice by a factor between 1 / `max_gain` and `max_gain`.

    MRI intensities have no unit: another scanner may show the same tissue twice as bright.
    """
    return x_nchw * max_gain ** (2 * random_nc[:, :, None, None] - 1)


def rotate_and_flip(
    x_nchw: Tensor, mask_nhw: Tensor, max_degrees: float, max_zoom: float, random_n4: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotate and scale each slice about its centre, and flip it along each axis in half the cases.

    Images are interpolated bilinearly, masks by the nearest pixel; what lies outside is 0. Slices
    that are not square keep their proportions.
    """
    n, height, width, device = len(x_nchw), x_nchw.shape[-2], x_nchw.shape[-1], x_nchw.device
    angle = (2 * random_n4[:, 0] - 1) * math.radians(max_degrees)
    zoom = max_zoom ** (2 * random_n4[:, 1] - 1)
    flip = torch.where(random_n4[:, 2:4].T < 0.5, -1.0, 1.0)
    cos, sin, zero = angle.cos() / zoom, angle.sin() / zoom, torch.zeros(n, device=device)
    # The flip comes before the rotation: each column of the matrix carries the sign of its axis.
    row_x = torch.stack([cos * flip[0], -sin * flip[1] * height / width, zero], dim=1)
    row_y = torch.stack([sin * flip[0] * width / height, cos * flip[1], zero], dim=1)
    grid = functional.affine_grid(
        torch.stack([row_x, row_y], dim=1), list(x_nchw.shape), align_corners=False
    )
    x_nchw = functional.grid_sample(x_nchw, grid, mode="bilinear", align_corners=False)
    mask_n1hw = functional.grid_sample(
        mask_nhw[:, None].to(x_nchw.dtype), grid, mode="nearest", align_corners=False
    )
    return x_nchw, mask_n1hw[:, 0].to(mask_nhw.dtype)
