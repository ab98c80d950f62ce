"""What a benchmark's numbers belong to."""

import os

import torch


def describe() -> str:
    """The cores and the matrix units of this machine, on one line."""
    units = {
        "AVX512": torch.cpu._is_avx512_supported(),
        "AVX512_BF16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    found = [name for name, there in units.items() if there]
    cpus = f"{os.cpu_count()} CPUs with {', '.join(found) or 'AVX2 at most'}"
    return f"{cpus}; GPUs: {', '.join(gpus) or 'none'}"
