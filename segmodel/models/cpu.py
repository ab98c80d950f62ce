"""Prepares a process to run networks on the CPU."""

import torch


def set_up_cpu(threads: int | None) -> None:
    """Set the number of threads and turn denormal numbers off.

    Weights that decay become denormal: smaller than a float's smallest number of full precision. A
    CPU computes with these about a hundred times slower.

    Args:
        threads: of this process; None leaves torch's default.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
