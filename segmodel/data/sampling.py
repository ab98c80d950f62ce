"""Which slices each worker takes in which order."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

Indices = npt.NDArray[np.int64]

OWN_GROUPS_SHARE = 0.9
"""Workers stream row groups of their own if an epoch then has at least this share of the steps."""


def shuffle(
    indices: Indices, group_n: npt.NDArray[np.int32], seed: int, cached_groups: int | None
) -> Indices:
    """Shuffle slices; the same seed gives the same order on every machine.

    If only some row groups are cached, the order reads each row group once: the slices of a row
    group are spread over a stretch of the order that as many row groups share.

    Args:
        indices: of the slices.
        group_n: the row group of each slice of the dataset.
        seed: of the order.
        cached_groups: how many row groups are kept in memory; None for all.
    """
    generator = np.random.default_rng(seed)
    if cached_groups is None:
        return indices[generator.permutation(len(indices))]
    # Only row groups with slices count: neighbours in the order may lie far apart in the archive.
    groups, group_of_slice = np.unique(group_n[indices], return_inverse=True)
    position = generator.permutation(len(groups))[group_of_slice]
    spread = max(1, cached_groups - 1)
    order = np.argsort(position + spread * generator.random(len(indices)), kind="stable")
    return indices[order]


def divide_row_groups(group_n: npt.NDArray[np.int32], parts: Sequence[int]) -> list[Indices]:
    """Divide the slices among workers by whole row groups, nearly in proportion to `parts`.

    Args:
        group_n: the row group of each slice.
        parts: slices of each worker in a pass, each at least 1.

    Returns:
        The indices of each worker's slices.
    """
    groups, sizes = np.unique(group_n, return_counts=True)
    loads = np.zeros(len(parts))
    owner = np.zeros(int(group_n.max(initial=-1)) + 1, dtype=np.int64)
    for place in np.argsort(-sizes, kind="stable"):
        worker = int(np.argmin((loads + sizes[place]) / np.array(parts)))
        owner[groups[place]] = worker
        loads[worker] += sizes[place]
    return [np.flatnonzero(owner[group_n] == worker) for worker in range(len(parts))]


class TrainSampler(Sampler[list[int]]):
    """One worker's part of shuffled batches that all workers share.

    If all slices are in memory, every worker draws the same order and takes its own part of each
    batch: the batches do not depend on the number of workers. If slices are streamed, each worker
    has row groups of its own, fills its part of each batch from these alone, and reads no others;
    with too few row groups for that, the workers share one order as above.

    All workers take the same number of steps, and no slice comes twice in an epoch. The slices left
    over after the last whole batch are other ones in the next epoch. Set `epoch` before each epoch:
    the order depends on it.

    Args:
        group_n: the row group of each slice of the dataset.
        batch_size: of all workers together, a multiple of `accumulate`.
        accumulate: passes that a batch is divided into, each for at least one slice per worker.
        rank: of this worker.
        world_size: workers.
        seed: of the order.
        cached_groups: row groups that the dataset keeps; None if it keeps all.
    """

    def __init__(
        self,
        group_n: npt.NDArray[np.int32],
        batch_size: int,
        accumulate: int,
        rank: int,
        world_size: int,
        seed: int,
        cached_groups: int | None = None,
    ) -> None:
        self.group_n, self.accumulate, self.rank = group_n, accumulate, rank
        self.seed, self.cached_groups = seed, cached_groups
        self.epoch = 0
        self.pass_size = batch_size // accumulate
        # Each worker's slices in a pass.
        self.parts = [len(p) for p in np.array_split(np.arange(self.pass_size), world_size)]
        self._steps = len(group_n) // batch_size
        self._own: Indices | None = None
        if cached_groups is not None and world_size > 1:
            self._take_own_groups()

    def _take_own_groups(self) -> None:
        shares = divide_row_groups(self.group_n, self.parts)
        steps = min(
            len(share) // (part * self.accumulate)
            for share, part in zip(shares, self.parts, strict=True)
        )
        if steps >= OWN_GROUPS_SHARE * self._steps:
            self._steps, self._own = min(steps, self._steps), shares[self.rank]

    def __len__(self) -> int:
        return self._steps * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        seed = self.seed * 100_003 + self.epoch
        if self._own is None:
            order = shuffle(np.arange(len(self.group_n)), self.group_n, seed, self.cached_groups)
            begin, size, stride = (
                sum(self.parts[: self.rank]),
                self.parts[self.rank],
                self.pass_size,
            )
        else:
            order = shuffle(self._own, self.group_n, seed, self.cached_groups)
            begin, size, stride = 0, self.parts[self.rank], self.parts[self.rank]
        for number in range(len(self)):
            start = begin + number * stride
            yield order[start : start + size].tolist()


class ValidationSampler(Sampler[list[int]]):
    """One worker's part of all slices, in the archive's order, each slice exactly once."""

    def __init__(self, count: int, batch_size: int, rank: int, world_size: int) -> None:
        self.own = np.array_split(np.arange(count), world_size)[rank].tolist()
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.own) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.own), self.batch_size):
            yield self.own[start : start + self.batch_size]
