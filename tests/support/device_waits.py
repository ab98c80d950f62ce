"""Counts, on a CPU, the operations that would make a GPU finish all of its queued work first."""

from collections import Counter
from typing import Any

import torch
from fastai.callback.core import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
FROM_HOST = {aten.lift_fresh.default}
"""torch.tensor, new_tensor and from_numpy: on a GPU, a copy from memory that is not pinned."""
OF_UNKNOWN_SIZE = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default}


class DeviceWaits(TorchDispatchMode):
    """What this thread does meanwhile: `found` counts, by operation, what waits for a device.

    A number may be read from a tensor that was filled by a non-blocking copy: it is in host memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.fetched: list[Tensor] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is aten.copy_.default and (kwargs.get("non_blocking") or args[2:] == (True,)):
            self.fetched.append(args[0])
        if self._waits(function, args):
            self.found[str(function)] += 1
        return function(*args, **kwargs)

    def _waits(self, function: Any, args: Any) -> bool:
        if function is aten._local_scalar_dense.default:
            return not any(args[0].data_ptr() == own.data_ptr() for own in self.fetched)
        if function is aten.index.Tensor:
            return any(at is not None and at.dtype == torch.bool for at in args[1])
        return function in FROM_HOST or function in OF_UNKNOWN_SIZE


class CountWaits(Callback):
    """What waits for the device in a batch, before all other callbacks and behind them."""

    order = -40

    def __init__(self) -> None:
        self.of_training, self.of_validation = DeviceWaits(), DeviceWaits()

    def before_batch(self) -> None:
        self.counting = self.of_training if self.training else self.of_validation
        self.counting.__enter__()


class EndOfBatch(Callback):
    """Ends the counting."""

    order = 100

    def after_batch(self) -> None:
        self.learn.count_waits.counting.__exit__(None, None, None)

    def after_cancel_fit(self) -> None:  # by a callback's after_batch, before that of this one
        self.after_batch()
