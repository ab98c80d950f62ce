"""Slices that kill their worker are found by halving; the workers of these tests die on command."""

import pytest

from segmodel.segmentation.crash_isolation import (
    CAREFUL_FROM,
    DEATHS,
    SHARD_DEATHS,
    CrashRecord,
    Part,
)


class DiedError(Exception):
    """Stands for the death of a process."""


def worker(
    record: CrashRecord, slices: int, deadly: set[int], deadly_reading: bool = False
) -> list[int]:
    """One attempt at a shard of one row group, as a segmentation makes it; returns the slices that it did."""
    attempt = record.begin("shard")

    def take(part: Part, dies: bool) -> None:
        if attempt.careful:
            record.take("shard", part)
        if dies:
            raise DiedError

    reading = Part(7)
    if attempt.careful and attempt.given_up(reading):
        return []
    take(reading, deadly_reading)
    done = []
    for part in attempt.parts(Part(7, 0, slices)) if attempt.careful else [Part(7, 0, slices)]:
        if attempt.given_up(part):
            continue
        rows = range(part.first, part.stop)
        take(part, bool(deadly & set(rows)))
        done += rows
    return done


def until_done(
    record: CrashRecord, slices: int, deadly: set[int], deadly_reading: bool = False
) -> tuple[list[int], int]:
    """The slices done in the end, and how many workers died before."""
    for deaths in range(1000):
        try:
            return worker(record, slices, deadly, deadly_reading), deaths
        except DiedError:
            continue
    pytest.fail("the shard is never done")


def test_a_deadly_slice_is_given_up_alone_after_a_bounded_number_of_deaths() -> None:
    done, deaths = until_done(CrashRecord(), 64, {41})
    assert done == [row for row in range(64) if row != 41]
    assert deaths == (CAREFUL_FROM - 1) + 6 + DEATHS  # halved from 64 to 1 in six steps


def test_several_deadly_slices_are_all_found() -> None:
    done, _ = until_done(CrashRecord(), 10, {0, 4, 9})
    assert done == [1, 2, 3, 5, 6, 7, 8]


def test_a_row_group_whose_reading_kills_is_given_up_whole() -> None:
    done, deaths = until_done(CrashRecord(), 64, set(), deadly_reading=True)
    assert done == []
    assert deaths == (CAREFUL_FROM - 1) + DEATHS


def test_a_worker_that_dies_for_another_reason_costs_nothing_but_a_repetition() -> None:
    record = CrashRecord()
    for _ in range(2):
        record.begin("shard")
    assert record.begin("shard").deaths == []
    record.take("shard", Part(7, 0, 64))
    attempt = record.begin("shard")
    assert attempt.parts(Part(7, 0, 64)) == [Part(7, 0, 32), Part(7, 32, 64)]
    assert not attempt.given_up(Part(7, 0, 32))


def test_shards_know_nothing_of_each_other_and_a_published_one_is_forgotten() -> None:
    record = CrashRecord()
    record.begin("a")
    assert record.begin("b").number == 1
    assert record.begin("a").number == 2
    record.done("a", 64)
    assert record.begin("a").number == 1


def test_starts_are_counted_until_slices_are_segmented() -> None:
    record = CrashRecord()
    assert [record.start(), record.start()] == [1, 2]
    record.done("a", 0)  # all its slices were given up: the workers may die of anything
    assert record.start() == 3
    record.done("b", 64)
    assert record.start() == 1
    record.take("c", Part(7))
    record.take("c", Part(7, 0, 64))
    assert record.start() == 2  # a row group was read; nothing is known of the network
    record.take("c", Part(8))
    assert record.start() == 1


@pytest.mark.parametrize(
    ("deadly", "least_done"), [(set(range(64)), 0), (set(range(50)), 0), (set(range(0, 64, 2)), 10)]
)
def test_a_shard_with_many_deadly_slices_costs_a_bounded_number_of_workers_and_keeps_what_was_found_harmless(
    deadly: set[int], least_done: int
) -> None:
    done, deaths = until_done(CrashRecord(), 64, deadly)
    assert not deadly & set(done)
    assert SHARD_DEATHS <= deaths <= SHARD_DEATHS + 20
    assert (
        len(done) >= least_done
    )  # every other one of the first twenty or so, which 100 deaths take apart
