"""The workers of a training: where one stands among them, and sums over all."""

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class WorkerContext:
    """The rank of a worker, the number of workers, and the worker's device."""

    rank: int
    world_size: int
    device: torch.device


def world_size() -> int:
    """Number of workers; 1 where no process group is set up."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_workers(numbers: list[float]) -> list[float]:
    """Sum each number over all workers; every worker must call it and gets the same sums."""
    if world_size() == 1:
        return numbers
    device = torch.device("cpu")
    if dist.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()
