"""Reads batches ahead and moves them to the device."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from segmodel.data.augmentation import slice_random_numbers
from segmodel.data.dataset import SliceDataset
from segmodel.data.sampling import TrainSampler, ValidationSampler

READ_AHEAD_BATCHES = 4


class Loader:
    """Batches of slices on the device; a thread reads ahead while the network works.

    A batch is what `SliceDataset` gives, and random numbers, float32 (N, K).

    Args:
        slices: to read.
        sampler: which slices each batch holds.
        device: where the batches go; through pinned memory if it is a GPU.
        random_numbers: K, how many random numbers a slice gets; they depend on the sampler's seed
            and epoch and on the slice.
    """

    n_inp = 2
    """fastai gives the first two tensors, pixels and masks, to the network as input."""

    def __init__(
        self,
        slices: SliceDataset,
        sampler: TrainSampler | ValidationSampler,
        device: torch.device,
        random_numbers: int = 0,
    ) -> None:
        self.slices, self.sampler, self.device = slices, sampler, device
        self.random_numbers = random_numbers

    def __len__(self) -> int:
        return len(self.sampler)

    def to_detach(self, value: Tensor, cpu: bool = True, gather: bool = True) -> Tensor:
        """Detach a tensor, as fastai's loaders do, but never gather it from other workers.

        fastai's Recorder calls this for each batch, and workers may have unequal numbers of these.
        """
        return value.detach().cpu() if cpu else value.detach()

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # One thread, because the dataset's cache may be used by one thread only.
        with ThreadPoolExecutor(1, thread_name_prefix="slices") as pool:
            ahead: deque[Future[tuple[Tensor, ...]]] = deque()
            try:
                for indices in self.sampler:
                    ahead.append(pool.submit(self._read, indices))
                    if len(ahead) > READ_AHEAD_BATCHES:
                        yield self._move(ahead.popleft().result())
                while ahead:
                    yield self._move(ahead.popleft().result())
            finally:
                for future in ahead:
                    future.cancel()

    def _read(self, indices: list[int]) -> tuple[Tensor, ...]:
        batch = (*self.slices[indices], self._random_numbers(indices))
        if self.device.type == "cuda":
            return tuple(tensor.pin_memory() for tensor in batch)
        return batch

    def _random_numbers(self, indices: list[int]) -> Tensor:
        if isinstance(self.sampler, ValidationSampler):
            return torch.empty(len(indices), 0)
        return slice_random_numbers(
            indices, self.sampler.seed, self.sampler.epoch, self.random_numbers
        )

    def _move(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)
