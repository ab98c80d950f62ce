"""Slices that kill their worker are found one by one; the workers of these tests die on command."""

import pytest

from segmodel.segmentation.crash_isolation import (
    CAREFUL_FROM,
    DEATHS,
    GROUP_DEATHS,
    Attempt,
    CrashRecord,
    Step,
)


class DiedError(Exception):
    """Stands for the death of a process."""


def worker(record: CrashRecord, groups: int, slices: int, deadly: set[Step]) -> list[Step]:
    """One attempt at a shard, as a segmentation makes it; returns the slices that it did."""
    attempt = record.begin("shard")
    done = []
    for group in range(groups):
        for step in [Step(group, row) for row in range(-1, slices)]:
            if attempt.careful and attempt.why_given_up(step):
                if step.row < 0:
                    break
                continue
            if attempt.careful:
                record.take("shard", step)
            if step in deadly:
                raise DiedError
            if step.row >= 0:
                done.append(step)
    return done


def until_done(
    record: CrashRecord, groups: int, slices: int, deadly: set[Step]
) -> tuple[list[Step], int]:
    """The slices done in the end, and how many workers died before."""
    for deaths in range(1000):
        try:
            return worker(record, groups, slices, deadly), deaths
        except DiedError:
            continue
    pytest.fail("the shard is never done")


def test_a_deadly_slice_is_given_up_alone_after_four_deaths() -> None:
    done, deaths = until_done(CrashRecord(), 1, 64, {Step(0, 41)})
    assert done == [Step(0, row) for row in range(64) if row != 41]
    assert deaths == 4 == (CAREFUL_FROM - 1) + DEATHS


def test_three_deadly_slices_of_a_row_group_are_all_found() -> None:
    done, _ = until_done(CrashRecord(), 1, 10, {Step(0, 0), Step(0, 4), Step(0, 9)})
    assert [step.row for step in done] == [1, 2, 3, 5, 6, 7, 8]


def test_a_row_group_whose_reading_kills_is_given_up_whole() -> None:
    done, deaths = until_done(CrashRecord(), 2, 4, {Step(0)})
    assert done == [Step(1, row) for row in range(4)]
    assert deaths == (CAREFUL_FROM - 1) + DEATHS


def test_a_death_for_another_reason_costs_no_slice() -> None:
    record = CrashRecord()
    for _ in range(2):
        record.begin("shard")
    assert record.begin("shard").deaths == []
    record.take("shard", Step(0, 7))
    attempt = record.begin("shard")
    assert attempt.deaths == [Step(0, 7)]
    assert attempt.why_given_up(Step(0, 7)) is None


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
    record.take("c", Step(7))
    record.take("c", Step(7, 0))
    assert record.start() == 2  # a row group was read; nothing is known of the network
    record.take("c", Step(8))
    assert record.start() == 1


def test_a_row_group_of_deadly_slices_costs_six_deaths_and_leaves_the_next_one_whole() -> None:
    deadly = {Step(0, row) for row in range(1, 64)}
    done, deaths = until_done(CrashRecord(), 2, 64, deadly)
    assert done == [Step(0, 0), *(Step(1, row) for row in range(64))]
    assert deaths == (CAREFUL_FROM - 1) + GROUP_DEATHS


def test_a_slice_that_was_not_tried_says_so() -> None:
    attempt = Attempt(9, [Step(0, row) for row in (0, 0, 1, 1, 2, 2)])
    assert "killed 2 workers while it was segmented" in (attempt.why_given_up(Step(0, 2)) or "")
    assert "was not tried: 6 workers died" in (attempt.why_given_up(Step(0, 3)) or "")
