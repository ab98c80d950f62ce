from pathlib import Path

import pytest
import torch

from segmodel.archive.annotations import find_annotated
from segmodel.archive.reader import Archive
from segmodel.core.errors import ArchiveError
from segmodel.data.dataset import SliceDataset
from segmodel.data.loader import Loader
from segmodel.data.sampling import TrainSampler

CPU = torch.device("cpu")


def test_random_numbers_of_a_slice_do_not_depend_on_the_number_of_workers(archive: Archive) -> None:
    slices = SliceDataset(archive, find_annotated(archive, mixed_sizes=False), 2)

    def numbers(world_size: int) -> dict[int, list[float]]:
        found = {}
        for rank in range(world_size):
            sampler = TrainSampler(slices.rows.shard_n, 30, 1, rank, world_size, seed=0)
            loader = Loader(slices, sampler, CPU, random_numbers=3)
            for _, _, indices, random_nk in loader:
                found |= dict(zip(indices.tolist(), random_nk.tolist(), strict=True))
        return found

    assert numbers(1) == numbers(2)


def test_a_loader_gives_the_sampler_s_batches_in_its_order(archive: Archive) -> None:
    slices = SliceDataset(archive, find_annotated(archive, mixed_sizes=False), 2)
    sampler = TrainSampler(slices.rows.shard_n, 7, 1, 0, 1, seed=0)
    batches = [indices.tolist() for _, _, indices, _ in Loader(slices, sampler, CPU)]
    assert batches == list(sampler)


def test_an_error_while_reading_ahead_reaches_the_training(archive: Archive) -> None:
    slices = SliceDataset(archive, find_annotated(archive, mixed_sizes=False), 2)
    next(Path(archive.uri).glob("*.parquet")).write_bytes(b"PAR1 no more")
    with pytest.raises(ArchiveError, match="not a readable Parquet file"):
        list(Loader(slices, TrainSampler(slices.rows.shard_n, 7, 1, 0, 1, seed=0), CPU))
