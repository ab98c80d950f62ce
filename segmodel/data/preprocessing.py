"""Pixels as the network sees them: scaled, normalised and padded, in training and inference."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from segmodel.settings.base import SIZE_MULTIPLE


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel, of values scaled to 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def statistics_of_histogram(histogram_cv: npt.NDArray[np.float64]) -> ChannelStatistics:
    """Mean and standard deviation of each channel.

    A constant channel gets a deviation of 1, so that nothing is divided by zero.

    Args:
        histogram_cv: how often each value, 0 to 255, occurs in each channel, (C, 256).
    """
    weights = histogram_cv / histogram_cv.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = (weights * values).sum(axis=1)
    std = np.sqrt((weights * (values - mean[:, None]) ** 2).sum(axis=1))
    return ChannelStatistics(tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))


def scaled_shape(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width after scaling the longest side to `longest` pixels."""
    scale = longest / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(x_nchw: Tensor, height: int, width: int) -> Tensor:
    """Scale bilinearly, with antialiasing where the image shrinks."""
    if x_nchw.shape[-2:] == (height, width):
        return x_nchw
    return functional.interpolate(x_nchw, (height, width), mode="bilinear", antialias=True)


def pixels_to_nchw(pixels_nhwc: Tensor, longest: int) -> Tensor:
    """Scale the longest side to `longest` pixels.

    Args:
        pixels_nhwc: uint8.
        longest: pixels.

    Returns:
        float, values 0 to 255, rounded to whole numbers.
    """
    x_nchw = pixels_nhwc.permute(0, 3, 1, 2).float()
    height, width = scaled_shape(x_nchw.shape[-2], x_nchw.shape[-1], longest)
    return resize(x_nchw, height, width).round_()


def normalise(x_nchw: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation.

    Args:
        x_nchw: values 0 to 255.
        mean: of each channel, of values scaled to 0 to 1, (C,).
        std: likewise.
    """
    return (x_nchw - 255 * mean[:, None, None]) / (255 * std[:, None, None])


def pad_to_multiple(x_nchw: Tensor, multiple: int = SIZE_MULTIPLE) -> Tensor:
    """Add zeros below and to the right, up to the next multiple of `multiple` pixels."""
    height, width = x_nchw.shape[-2:]
    return functional.pad(x_nchw, (0, -width % multiple, 0, -height % multiple))
