"""Random changes to training slices, in batches, on the device; the masks move with the images."""

import math
from dataclasses import dataclass

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

    def __call__(self, x_nchw: Tensor, mask_nhw: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W), values from 0 up, and masks (N, H, W) of 0 and 1, changed alike; a half of them is mirrored."""
        if self.flair is not None:
            x_nchw = take_sequences_away(x_nchw, self.flair, self.missing_sequences)
        return turn(change_gain(x_nchw, self.max_gain), mask_nhw, self.max_rotation, self.max_zoom)


def take_sequences_away(x_nchw: Tensor, kept: int, share: float) -> Tensor:
    """Each slice, (N, C, H, W), with probability `share` with channel `kept` in place of all others.

    That is how the LGG data set (Buda et al., 2019) fills in the sequences that a patient lacks.
    """
    lacking_n111 = torch.rand(len(x_nchw), 1, 1, 1, device=x_nchw.device) < share
    return torch.where(lacking_n111, x_nchw[:, kept : kept + 1], x_nchw)


def turn(
    x_nchw: Tensor, mask_nhw: Tensor, max_degrees: float, max_zoom: float
) -> tuple[Tensor, Tensor]:
    """Each slice mirrored along either axis with probability one half, rotated and scaled about its centre.

    Image (N, C, H, W), bilinear; mask (N, H, W), nearest. What comes in from outside the image is 0. Not square slices keep
    their proportions: the rotation is one of pixels.
    """
    n, height, width, device = len(x_nchw), x_nchw.shape[-2], x_nchw.shape[-1], x_nchw.device
    angle = (2 * torch.rand(n, device=device) - 1) * math.radians(max_degrees)
    zoom = max_zoom ** (2 * torch.rand(n, device=device) - 1)
    flip = 1.0 - 2.0 * torch.randint(2, (2, n), device=device)
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


def change_gain(x_nchw: Tensor, max_gain: float) -> Tensor:
    """Each channel of each slice, (N, C, H, W), times its own factor between 1/`max_gain` and `max_gain`.

    MRI intensities have no unit: the same tissue is twice as bright in one scanner's images as in another's.
    """
    exponent = 2 * torch.rand(*x_nchw.shape[:2], 1, 1, device=x_nchw.device) - 1
    return x_nchw * max_gain**exponent
