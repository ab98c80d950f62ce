"""Slices as tensors: from the archive to what a network takes, the same way in training and in inference."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from segmodel.archive.annotations import SliceRows
from segmodel.archive.reader import Archive, Shard, read_shard
from segmodel.archive.slice_format import check_slices, image
from segmodel.core.errors import ArchiveError
from segmodel.data.augmentation import slice_randoms
from segmodel.settings.jobs import SIZE_MULTIPLE
from segmodel.storage import store

Indices = npt.NDArray[np.int64]

STATISTICS_GROUPS = 64
READ_AHEAD_BATCHES = 4


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


def read_annotated(archive: Archive, shard: Shard, row_n: npt.NDArray[np.int32]) -> pa.Table:
    """Some slices of a shard, with their masks.

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


class Slices(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Annotated slices as the network sees them: 1 byte a pixel and channel, longest side `image_size`.

    An index is a list of slices; what it gives is a batch: pixels uint8 (N, S, S, C), masks uint8 (N, S, S) of 0 and 1, and the
    indices themselves, int64 (N). Slices that are not square have zeros below or to the right.

    Row groups are read from the archive when they are first asked for. `keep_groups` of them are kept, the ones asked for last;
    `shuffled` then draws an order in which that many are enough.

    Args:
        archive: where the slices are.
        rows: which slices.
        image_size: pixels.
        keep_groups: None keeps all in memory.
    """

    def __init__(
        self, archive: Archive, rows: SliceRows, image_size: int, keep_groups: int | None = None
    ) -> None:
        self.archive, self.rows, self.image_size, self.keep_groups = (
            archive,
            rows,
            image_size,
            keep_groups,
        )
        self.group_starts = np.searchsorted(
            rows.shard_n, np.arange(len(rows.shards) + 1)
        )  # slices are in the archive's order
        self._kept: OrderedDict[int, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = (
            OrderedDict()
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        size, channels = self.image_size, len(self.archive.info.channels)
        pixels_nhwc = np.empty((len(indices), size, size, channels), dtype=np.uint8)
        mask_nhw = np.empty((len(indices), size, size), dtype=np.uint8)
        for place, index in enumerate(indices):
            number = int(self.rows.shard_n[index])
            pixels, masks = self._group(number)
            pixels_nhwc[place] = pixels[index - self.group_starts[number]]
            mask_nhw[place] = masks[index - self.group_starts[number]]
        return (
            torch.from_numpy(pixels_nhwc),
            torch.from_numpy(mask_nhw),
            torch.tensor(indices, dtype=torch.int64),
        )

    @property
    def bytes_a_slice(self) -> int:
        """Memory that one slice takes here."""
        return self.image_size**2 * (len(self.archive.info.channels) + 1)

    def shuffled(self, seed: int, only: Indices | None = None) -> list[int]:
        """A random order of slices: the same for the same seed, on every machine.

        With `keep_groups`, the slices of a row group are spread over as long a stretch of the order as that many row groups
        with annotated slices hold, so that each is read once.

        Args:
            seed: of the order.
            only: indices of the slices; None for all.
        """
        generator = np.random.default_rng(seed)
        indices = np.arange(len(self)) if only is None else only
        if self.keep_groups is None:
            return _listed(indices[generator.permutation(len(indices))])
        groups, of_slice = np.unique(self.rows.shard_n[indices], return_inverse=True)
        position = generator.permutation(len(groups))[of_slice]
        spread = max(1, self.keep_groups - 1)
        order = np.argsort(position + spread * generator.random(len(indices)), kind="stable")
        return _listed(indices[order])

    def shares(self, workers: int) -> list[Indices]:
        """Slices for each of some workers: whole row groups, so that no two workers read the same one."""
        groups, sizes = np.unique(self.rows.shard_n, return_counts=True)
        loads = [0] * workers
        owner = {}
        for group, size in sorted(zip(groups, sizes, strict=True), key=lambda pair: -pair[1]):
            least = loads.index(min(loads))
            owner[group] = least
            loads[least] += int(size)
        of_slice = np.array([owner[group] for group in self.rows.shard_n])
        return [np.flatnonzero(of_slice == worker) for worker in range(workers)]

    def load(self) -> None:
        """Read everything now, not when it is asked for."""
        for number in np.unique(self.rows.shard_n):
            self._group(int(number))

    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel, of at most `STATISTICS_GROUPS` row groups, evenly chosen."""
        numbers = np.unique(self.rows.shard_n)
        chosen = numbers[
            np.unique(np.linspace(0, len(numbers) - 1, STATISTICS_GROUPS).round().astype(int))
        ]
        channels = range(len(self.archive.info.channels))
        histogram = np.zeros((len(channels), 256))
        for number in chosen:
            pixels_nhwc, _ = self._group(int(number))
            histogram += [
                np.bincount(pixels_nhwc[..., channel].ravel(), minlength=256)
                for channel in channels
            ]
        weights, values = histogram / histogram.sum(axis=1, keepdims=True), np.arange(256) / 255
        mean = (weights * values).sum(axis=1)
        std = np.sqrt((weights * (values - mean[:, None]) ** 2).sum(axis=1))
        # A channel that is the same everywhere carries nothing: it is left as it is rather than divided by zero.
        return Statistics(tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))

    def _group(self, number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """The wanted slices of one row group, in its order."""
        found = self._kept.get(number)
        if found is None:
            found = self._read(number)
            self._kept[number] = found
        self._kept.move_to_end(number)
        if self.keep_groups is not None and len(self._kept) > self.keep_groups:
            self._kept.popitem(last=False)
        return found

    def _read(self, number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        rows = self.rows.row_n[self.group_starts[number] : self.group_starts[number + 1]]
        table, channels = (
            read_annotated(self.archive, self.rows.shards[number], rows),
            len(self.archive.info.channels),
        )
        size = self.image_size
        pixels_nhwc = np.zeros((len(rows), size, size, channels), dtype=np.uint8)
        mask_nhw = np.zeros((len(rows), size, size), dtype=np.uint8)
        columns = (table[name] for name in ("pixels", "mask", "height", "width"))
        for place, (pixels, mask, height, width) in enumerate(zip(*columns, strict=True)):
            h, w = height.as_py(), width.as_py()
            pixels_hwc, mask_hwc = image(pixels, h, w, channels), image(mask, h, w, 1)
            if max(h, w) == size:
                pixels_nhwc[place, :h, :w], mask_nhw[place, :h, :w] = pixels_hwc, mask_hwc[..., 0]
                continue
            # Arrow's buffers are read-only, and torch warns about such; a slice is small.
            x_nchw = pixels_to_nchw(torch.from_numpy(pixels_hwc.copy())[None], size)
            y_nchw = resize(
                torch.from_numpy(mask_hwc[..., 0].copy())[None, None].float(),
                x_nchw.shape[-2],
                x_nchw.shape[-1],
            )
            h, w = x_nchw.shape[-2:]
            pixels_nhwc[place, :h, :w] = x_nchw[0].permute(1, 2, 0).byte().numpy()
            mask_nhw[place, :h, :w] = (y_nchw[0, 0] >= 0.5).numpy()
        return pixels_nhwc, mask_nhw


def _listed(indices: Indices) -> list[int]:
    return [int(index) for index in indices]


class GlobalBatches(Sampler[list[int]]):
    """One worker's part of shuffled batches that all workers share.

    With all slices in memory, every worker draws the same order and takes its own part of each batch. When slices are streamed
    from the archive, each worker has row groups of its own and draws from these alone. Either way all workers take the same
    number of steps, and no slice comes twice in an epoch. The slices left over after the last whole batch come in another
    epoch's order. `epoch`, which the training sets, decides on the order.

    Args:
        slices: to draw from.
        batch_size: of all workers together.
        accumulate: passes that a batch is divided into.
        rank: of this worker.
        world_size: workers.
        seed: of the order.
    """

    def __init__(
        self,
        slices: Slices,
        batch_size: int,
        accumulate: int,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        self.slices, self.batch_size, self.accumulate = slices, batch_size, accumulate
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.epoch = 0
        own_shares = slices.keep_groups is not None and world_size > 1
        self.shares = slices.shares(world_size) if own_shares else None

    def __len__(self) -> int:
        return self._steps() * self.accumulate

    def _steps(self) -> int:
        if self.shares is None:
            return len(self.slices) // self.batch_size
        parts = np.array_split(np.arange(self.batch_size), self.world_size)
        return min(len(share) // len(part) for share, part in zip(self.shares, parts, strict=True))

    def __iter__(self) -> Iterator[list[int]]:
        seed = self.seed * 100_003 + self.epoch
        if self.shares is not None:
            yield from self._of_own_share(seed, self.shares[self.rank])
            return
        order = self.slices.shuffled(seed)
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            for part in np.array_split(order[start : start + self.batch_size], self.accumulate):
                yield np.array_split(part, self.world_size)[self.rank].tolist()

    def _of_own_share(self, seed: int, share: Indices) -> Iterator[list[int]]:
        order = self.slices.shuffled(seed, share)
        own = len(np.array_split(np.arange(self.batch_size), self.world_size)[self.rank])
        for step in range(self._steps()):
            for part in np.array_split(order[step * own : (step + 1) * own], self.accumulate):
                yield part.tolist()


class Portion(Sampler[list[int]]):
    """One worker's part of all slices, each exactly once: a run of neighbours, in batches."""

    def __init__(self, count: int, batch_size: int, rank: int, world_size: int) -> None:
        self.own = np.array_split(np.arange(count), world_size)[rank].tolist()
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.own) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.own), self.batch_size):
            yield self.own[start : start + self.batch_size]


class Loader:
    """Batches of slices and random numbers on the device, read ahead in a thread while the network works.

    Args:
        slices: to read.
        sampler: which slices each batch holds.
        device: where the batches go; through pinned memory if it is a GPU.
    """

    n_inp = 2
    """How many of a batch's tensors fastai takes for the network's input: pixels and masks."""

    def __init__(
        self, slices: Slices, sampler: GlobalBatches | Portion, device: torch.device
    ) -> None:
        self.slices, self.sampler, self.device = slices, sampler, device

    def __len__(self) -> int:
        return len(self.sampler)

    def to_detach(self, value: Tensor, cpu: bool = True, gather: bool = True) -> Tensor:
        """As fastai's, without the exchange: its Recorder gathers each batch's loss, and workers may have unequal numbers."""
        return value.detach().cpu() if cpu else value.detach()

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # One thread: the kept row groups belong to it alone while an epoch runs.
        with ThreadPoolExecutor(1, thread_name_prefix="slices") as pool:
            ahead: deque[Future[tuple[Tensor, ...]]] = deque()
            try:
                for indices in self.sampler:
                    ahead.append(pool.submit(self._read, indices, self._randoms(indices)))
                    if len(ahead) > READ_AHEAD_BATCHES:
                        yield self._move(ahead.popleft().result())
                while ahead:
                    yield self._move(ahead.popleft().result())
            finally:
                for future in ahead:
                    future.cancel()

    def _randoms(self, indices: list[int]) -> Tensor:
        """For the augmentation; slices of a validation need none."""
        if isinstance(self.sampler, Portion):
            return torch.empty(len(indices), 0)
        channels = len(self.slices.archive.info.channels)
        return slice_randoms(indices, self.sampler.seed, self.sampler.epoch, channels)

    def _read(self, indices: list[int], random_nk: Tensor) -> tuple[Tensor, ...]:
        batch = (*self.slices[indices], random_nk)
        return (
            tuple(tensor.pin_memory() for tensor in batch) if self.device.type == "cuda" else batch
        )

    def _move(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)
