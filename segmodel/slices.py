"""Slices as tensors: from the archive to what a network takes, the same way in training and in inference."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from segmodel import archive as archives
from segmodel.archive import Archive
from segmodel.config import SIZE_MULTIPLE
from segmodel.errors import ArchiveError


def scaled_shape(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width when the longest side becomes `longest` pixels and the proportions stay."""
    scale = longest / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(x_nchw: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, with antialiasing where it shrinks; nothing happens if the size is right already."""
    if x_nchw.shape[-2:] == (height, width):
        return x_nchw
    return functional.interpolate(x_nchw, (height, width), mode="bilinear", antialias=True)


def pixels_to_nchw(pixels_nhwc: Tensor, longest: int) -> Tensor:
    """uint8 (N, H, W, C) to float (N, C, H', W'), values 0 to 255 in whole numbers, longest side scaled to `longest`."""
    x_nchw = pixels_nhwc.permute(0, 3, 1, 2).float()
    height, width = scaled_shape(x_nchw.shape[-2], x_nchw.shape[-1], longest)
    return resize(x_nchw, height, width).round_()


def normalise(x_nchw: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Values 0 to 255 to zero mean and unit deviation; `mean` and `std`, (C,), are of values scaled to 0 to 1."""
    return (x_nchw - 255 * mean[:, None, None]) / (255 * std[:, None, None])


def pad_to_multiple(x_nchw: Tensor, multiple: int = SIZE_MULTIPLE) -> Tensor:
    """Zeros below and to the right, up to the next multiple."""
    height, width = x_nchw.shape[-2:]
    return functional.pad(x_nchw, (0, -width % multiple, 0, -height % multiple))


@dataclass(frozen=True)
class Statistics:
    """Of the channels of some slices, values scaled to 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class SliceDataset(Dataset[tuple[Tensor, Tensor]]):
    """Annotated slices in memory: 1 byte a pixel and channel, at the size that the network sees.

    An index is a list of slices; what it gives is a batch: uint8 (N, S, S, C) and uint8 (N, S, S) with 0 and 1. Slices that are
    not square have zeros below or to the right.
    """

    def __init__(self, pixels_nhwc: Tensor, mask_nhw: Tensor) -> None:
        self.pixels_nhwc, self.mask_nhw = pixels_nhwc, mask_nhw

    def __len__(self) -> int:
        return len(self.pixels_nhwc)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.pixels_nhwc[indices], self.mask_nhw[indices]

    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel."""
        channels = self.pixels_nhwc.shape[-1]
        histogram = torch.stack([torch.bincount(self.pixels_nhwc[..., c].flatten(), minlength=256) for c in range(channels)])
        values = torch.arange(256, dtype=torch.float64) / 255
        weights = histogram.double() / histogram.sum(dim=1, keepdim=True)
        mean = (weights * values).sum(dim=1)
        std = (weights * (values - mean[:, None]) ** 2).sum(dim=1).sqrt()
        # A channel that is the same everywhere carries nothing: it is left as it is rather than divided by zero.
        std = torch.where(std > 0, std, torch.ones_like(std))
        return Statistics(tuple(mean.tolist()), tuple(std.tolist()))


def load_annotated(archive: Archive, patients: Iterable[str], image_size: int) -> SliceDataset:
    """The annotated slices of some patients, in the archive's order.

    Raises:
        ArchiveError: a slice is damaged, a mask holds something else than 0 and 1, or there is no annotated slice.
    """
    wanted = pa.array(sorted(set(patients)), type=pa.string())
    pixels, masks = [], []
    for table in archive.batches():
        rows = table.filter(pc.is_in(table["patient_id"], wanted))
        rows = rows.filter(pc.is_valid(rows["mask"]))
        for slice_id, pixels_hwc, mask_hw in _decode(rows, len(archive.info.channels)):
            if mask_hw.max() > 1:
                raise ArchiveError(f"{archive.uri}: the mask of slice {slice_id!r} holds {mask_hw.max()}, expected 0 and 1")
            x_nchw = pixels_to_nchw(torch.from_numpy(pixels_hwc)[None], image_size)
            y_nchw = resize(torch.from_numpy(mask_hw)[None, None].float(), x_nchw.shape[-2], x_nchw.shape[-1])
            pixels.append(pad_to_multiple(x_nchw, image_size)[0].permute(1, 2, 0).byte())
            masks.append((pad_to_multiple(y_nchw, image_size)[0, 0] >= 0.5).byte())
    if not pixels:
        raise ArchiveError(f"{archive.uri}: none of the slices of the {len(wanted)} patients asked for has a mask")
    return SliceDataset(torch.stack(pixels), torch.stack(masks))


def _decode(rows: pa.Table, channels: int) -> Iterator[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    columns = ("slice_id", "pixels", "mask", "height", "width")
    for slice_id, pixels, mask, height, width in zip(*(rows[name] for name in columns), strict=True):
        h, w = height.as_py(), width.as_py()
        pixels_hwc, mask_hwc = archives.image(pixels, h, w, channels), archives.image(mask, h, w, 1)
        # Arrow's buffers are read-only, and torch warns about such; a slice is small.
        yield slice_id.as_py(), pixels_hwc.copy(), mask_hwc[..., 0].copy()


class GlobalBatches(Sampler[list[int]]):
    """One worker's part of shuffled batches that all workers share.

    Every worker draws the same order and takes its own part of each batch, so all take the same number of steps and no slice
    comes twice in an epoch. The slices left over after the last whole batch come in another epoch's order.

    Args:
        count: slices.
        batch_size: of all workers together.
        rank: of this worker.
        world_size: workers.
        seed: of the order.
    """

    def __init__(self, count: int, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        self.count, self.batch_size, self.rank, self.world_size, self.seed = count, batch_size, rank, world_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)).tolist()
        self.epoch += 1
        own = self.batch_size // self.world_size
        for step in range(len(self)):
            start = step * self.batch_size + self.rank * own
            yield order[start : start + own]


class Portion(Sampler[list[int]]):
    """One worker's part of all slices, each exactly once: every `world_size`-th, in batches."""

    def __init__(self, count: int, batch_size: int, rank: int, world_size: int) -> None:
        self.own = list(range(rank, count, world_size))
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.own) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.own), self.batch_size):
            yield self.own[start : start + self.batch_size]
