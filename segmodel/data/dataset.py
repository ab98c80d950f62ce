"""Annotated slices of an archive as a dataset, held in memory or streamed."""

from collections import OrderedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from segmodel.archive.annotations import SliceRows
from segmodel.archive.reader import Archive, Shard, read_shard
from segmodel.archive.slice_format import check_slices, image
from segmodel.core.errors import ArchiveError
from segmodel.data.preprocessing import (
    ChannelStatistics,
    pixels_to_nchw,
    resize,
    statistics_of_histogram,
)
from segmodel.storage import store

Bytes = npt.NDArray[np.uint8]

STATISTICS_GROUPS = 64
"""Row groups, at most, that the statistics of the channels are computed from."""


def read_annotated(archive: Archive, shard: Shard, row_n: npt.NDArray[np.int32]) -> pa.Table:
    """Read some slices of a shard, with their masks.

    Raises:
        ArchiveError: the shard or one of the slices is damaged.
    """
    table = read_shard(archive.uri, shard).take(row_n)
    for problem in check_slices(table, len(archive.info.channels)):
        path = store.join(archive.uri, shard.file)
        raise ArchiveError(
            f"{path}: slice {problem.slice_id!r} {problem.reason}; ingest this patient again"
        )
    return table


class SliceDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Annotated slices, 1 byte per pixel and channel, longest side `image_size`.

    `dataset[indices]` takes a list of indices and gives a batch: pixels uint8 (N, S, S, C), masks
    uint8 (N, S, S) of 0 and 1, and the indices, int64 (N). Slices that are not square are padded
    with zeros below or to the right.

    A row group is read from the archive when one of its slices is first asked for.

    Args:
        archive: where the slices are.
        rows: which slices.
        image_size: pixels.
        cached_groups: how many row groups to keep, those used last; None keeps all in memory.
    """

    def __init__(
        self, archive: Archive, rows: SliceRows, image_size: int, cached_groups: int | None = None
    ) -> None:
        self.archive, self.rows = archive, rows
        self.image_size, self.cached_groups = image_size, cached_groups
        # Slices are in the archive's order: those of a row group are neighbours.
        self.group_starts = np.searchsorted(rows.shard_n, np.arange(len(rows.shards) + 1))
        self._cache: OrderedDict[int, tuple[Bytes, Bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        size, channels = self.image_size, len(self.archive.info.channels)
        pixels_nhwc = np.empty((len(indices), size, size, channels), dtype=np.uint8)
        mask_nhw = np.empty((len(indices), size, size), dtype=np.uint8)
        for n, index in enumerate(indices):
            number = int(self.rows.shard_n[index])
            pixels, masks = self._group(number)
            pixels_nhwc[n] = pixels[index - self.group_starts[number]]
            mask_nhw[n] = masks[index - self.group_starts[number]]
        return (
            torch.from_numpy(pixels_nhwc),
            torch.from_numpy(mask_nhw),
            torch.tensor(indices, dtype=torch.int64),
        )

    @property
    def bytes_per_slice(self) -> int:
        """Memory that one slice takes."""
        return self.image_size**2 * (len(self.archive.info.channels) + 1)

    def load(self) -> None:
        """Read all slices into memory now.

        Raises:
            ArchiveError: a slice is damaged.
        """
        for number in np.unique(self.rows.shard_n):
            self._group(int(number))

    def statistics(self) -> ChannelStatistics:
        """Statistics of the channels, from at most `STATISTICS_GROUPS` evenly spaced row groups."""
        numbers = np.unique(self.rows.shard_n)
        spaced = np.linspace(0, len(numbers) - 1, STATISTICS_GROUPS).round().astype(int)
        channels = range(len(self.archive.info.channels))
        histogram_cv = np.zeros((len(channels), 256))
        for number in numbers[np.unique(spaced)]:
            pixels_nhwc, _ = self._group(int(number))
            histogram_cv += [
                np.bincount(pixels_nhwc[..., channel].ravel(), minlength=256)
                for channel in channels
            ]
        return statistics_of_histogram(histogram_cv)

    def _group(self, number: int) -> tuple[Bytes, Bytes]:
        """The annotated slices of one row group, from the cache or from the archive."""
        group = self._cache.get(number)
        if group is None:
            group = self._cache[number] = self._read(number)
        self._cache.move_to_end(number)
        if self.cached_groups is not None and len(self._cache) > self.cached_groups:
            self._cache.popitem(last=False)
        return group

    def _read(self, number: int) -> tuple[Bytes, Bytes]:
        rows = self.rows.row_n[self.group_starts[number] : self.group_starts[number + 1]]
        table = read_annotated(self.archive, self.rows.shards[number], rows)
        size, channels = self.image_size, len(self.archive.info.channels)
        pixels_nhwc = np.zeros((len(rows), size, size, channels), dtype=np.uint8)
        mask_nhw = np.zeros((len(rows), size, size), dtype=np.uint8)
        columns = (table[name] for name in ("pixels", "mask", "height", "width"))
        for n, (pixels, mask, height, width) in enumerate(zip(*columns, strict=True)):
            h, w = height.as_py(), width.as_py()
            pixels_hwc, mask_hw = image(pixels, h, w, channels), image(mask, h, w, 1)[..., 0]
            if max(h, w) != size:
                pixels_hwc, mask_hw = _scaled(pixels_hwc, mask_hw, size)
                h, w = mask_hw.shape
            pixels_nhwc[n, :h, :w], mask_nhw[n, :h, :w] = pixels_hwc, mask_hw
        return pixels_nhwc, mask_nhw


def _scaled(pixels_hwc: Bytes, mask_hw: Bytes, size: int) -> tuple[Bytes, Bytes]:
    # Arrow's buffers are read-only, and torch warns about such: copy.
    x_nchw = pixels_to_nchw(torch.from_numpy(pixels_hwc.copy())[None], size)
    mask_nchw = torch.from_numpy(mask_hw.copy())[None, None].float()
    mask_nchw = resize(mask_nchw, x_nchw.shape[-2], x_nchw.shape[-1])
    pixels: Bytes = x_nchw[0].permute(1, 2, 0).byte().numpy()
    mask: Bytes = (mask_nchw[0, 0] >= 0.5).byte().numpy()
    return pixels, mask
