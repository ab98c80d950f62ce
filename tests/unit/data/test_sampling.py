import itertools

import numpy as np
import numpy.typing as npt
import pytest

from segmodel.data.sampling import TrainSampler, ValidationSampler


def group_of_slices(slices_per_group: list[int]) -> npt.NDArray[np.int32]:
    """The row group of each annotated slice of an archive."""
    return np.repeat(np.arange(len(slices_per_group)), slices_per_group).astype(np.int32)


def groups_per_batch(group_n: npt.NDArray[np.int32]) -> float:
    """Mean number of row groups that a batch of 16 comes from, in a streamed epoch."""
    batches = TrainSampler(group_n, 16, 1, 0, 1, seed=0, cached_groups=16)
    return float(np.mean([len({group_n[index] for index in batch}) for batch in batches]))


def test_batches_mix_as_many_row_groups_where_one_in_a_hundred_is_annotated() -> None:
    every = groups_per_batch(group_of_slices([64] * 40))
    one_in_a_hundred = groups_per_batch(group_of_slices(([64] + [0] * 99) * 40))
    assert every > 8
    assert one_in_a_hundred == pytest.approx(every, rel=0.05)


def test_a_streamed_epoch_begins_with_other_row_groups_than_the_one_before() -> None:
    group_n = group_of_slices([8] * 40)
    batches = TrainSampler(group_n, 8, 1, 0, 1, seed=0, cached_groups=2)
    first = set()
    for batches.epoch in range(10):
        first.add(int(group_n[next(iter(batches))[0]]))
    assert len(first) > 5


def streamed(group_n: npt.NDArray[np.int32], world_size: int) -> list[TrainSampler]:
    return [
        TrainSampler(group_n, 12, 1, rank, world_size, seed=0, cached_groups=4)
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_streaming_worker_reads_row_groups_of_its_own(world_size: int) -> None:
    group_n = group_of_slices([64, 10, 0, 64, 30, 64, 64, 5, 40])
    samplers = streamed(group_n, world_size)
    own = [[index for batch in sampler for index in batch] for sampler in samplers]
    assert len({len(sampler) for sampler in samplers}) == 1
    assert [len(indices) for indices in own] == [len(samplers[0]) * 12 // world_size] * world_size
    groups = [{int(group_n[index]) for index in indices} for indices in own]
    for one, other in itertools.combinations(groups, 2):
        assert one.isdisjoint(other)
    assert all(len(set(indices)) == len(indices) for indices in own)
    assert len(samplers[0]) * 12 > 0.9 * (len(group_n) - 12)


def test_streaming_workers_without_row_groups_for_all_share_one_order() -> None:
    group_n = group_of_slices([64, 64])
    samplers = streamed(group_n, world_size=3)
    assert [len(sampler) for sampler in samplers] == [10] * 3  # 128 slices are 10 batches of 12
    indices = [index for sampler in samplers for batch in sampler for index in batch]
    assert len(set(indices)) == len(indices) == 120


def test_passes_of_streaming_workers_with_unequal_parts_have_the_same_size() -> None:
    # Batches of 10 in two passes for three workers: 2, 2 and 1 slices each in a pass.
    group_n = group_of_slices([40] * 15)
    samplers = [TrainSampler(group_n, 10, 2, rank, 3, seed=0, cached_groups=4) for rank in range(3)]
    assert [{len(part) for part in sampler} for sampler in samplers] == [{2}, {2}, {1}]
    assert [len(sampler) for sampler in samplers] == [2 * 60] * 3  # 600 slices, none left over
    groups = [{int(group_n[n]) for part in sampler for n in part} for sampler in samplers]
    assert [len(own) for own in groups] == [6, 6, 3]


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (3, 2)])
def test_workers_share_each_batch_without_overlap(world_size: int, accumulate: int) -> None:
    group_n = group_of_slices([64] * 5)
    whole = list(TrainSampler(group_n, 30, 1, 0, 1, seed=0))
    parts = [
        list(TrainSampler(group_n, 30, accumulate, rank, world_size, seed=0))
        for rank in range(world_size)
    ]
    assert len(whole) == 10  # 320 slices are 10 whole batches of 30
    assert [len(part) for part in parts] == [10 * accumulate] * world_size
    for step, batch in enumerate(whole):
        passes = range(step * accumulate, (step + 1) * accumulate)
        assert sorted(index for n in passes for part in parts for index in part[n]) == sorted(batch)
    assert len({index for batch in whole for index in batch}) == 300


@pytest.mark.parametrize("cached_groups", [None, 2])
def test_the_order_depends_on_the_epoch_and_the_seed_alone(cached_groups: int | None) -> None:
    group_n = group_of_slices([64] * 5)
    one, again = (TrainSampler(group_n, 10, 1, 0, 1, 3, cached_groups) for _ in range(2))
    first = list(one)
    assert first == list(one)
    one.epoch = again.epoch = 1
    assert list(one) == list(again) != first
    assert first != list(TrainSampler(group_n, 10, 1, 0, 1, 4, cached_groups))


def test_validation_parts_cover_every_slice_once() -> None:
    parts = [ValidationSampler(10, 2, rank, 3) for rank in range(3)]
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(10))
