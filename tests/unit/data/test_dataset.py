import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from segmodel.archive.annotations import SliceRows, find_annotated
from segmodel.archive.reader import Archive, Shard
from segmodel.core import schema
from segmodel.core.errors import ArchiveError
from segmodel.data.dataset import (
    GlobalBatches,
    Loader,
    Portion,
    Slices,
    normalise,
    pad_to_multiple,
    pixels_to_nchw,
    scaled_shape,
)
from tests.support.archive_writer import ArchiveWriter

CPU = torch.device("cpu")


def test_the_longest_side_is_scaled_and_the_proportions_stay() -> None:
    assert scaled_shape(512, 256, 128) == (128, 64)
    assert scaled_shape(100, 300, 30) == (10, 30)


def test_shrinking_averages_blocks_of_pixels() -> None:
    pixels = torch.zeros(1, 4, 4, 1, dtype=torch.uint8)
    pixels[0, :, :2] = 100
    small = pixels_to_nchw(pixels, 2)
    assert small.shape == (1, 1, 2, 2)
    assert small[0, 0, 0, 0] > small[0, 0, 0, 1]


def test_pixels_of_the_right_size_are_not_touched() -> None:
    pixels = torch.arange(48, dtype=torch.uint8).reshape(1, 4, 4, 3)
    assert (pixels_to_nchw(pixels, 4) == pixels.permute(0, 3, 1, 2)).all()


def test_padding_goes_below_and_to_the_right() -> None:
    padded = pad_to_multiple(torch.ones(1, 1, 33, 64), 32)
    assert padded.shape == (1, 1, 64, 64)
    assert padded[..., :33, :].min() == 1
    assert padded[..., 33:, :].max() == 0


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    x = torch.full((1, 2, 1, 1), 255.0)
    y = normalise(x, torch.tensor([0.5, 0.0]), torch.tensor([0.25, 2.0]))
    assert y.flatten().tolist() == [2.0, 0.5]  # (1 - 0.5) / 0.25 and (1 - 0) / 2


def write_archive(
    folder: Path, counts: dict[str, int], *, height: int = 2, width: int = 2, mask_value: int = 1
) -> Archive:
    """Two channels; slice n of all has pixels n and 0, and a mask of `mask_value`; every fifth has none."""
    with ArchiveWriter(
        str(folder), source="test", channels=("a", "b"), intensity_scaling="none", overwrite=False
    ) as writer:
        number = 0
        for patient, slices in counts.items():
            rows = []
            for index in range(1, slices + 1):
                pixels = np.zeros((height, width, 2), dtype=np.uint8)
                pixels[..., 0] = number % 256
                mask = None if number % 5 == 4 else bytes([mask_value]) * (height * width)
                rows.append(
                    {
                        "slice_id": f"{patient}_{index:03d}",
                        "patient_id": patient,
                        "series_id": patient,
                        "slice_index": index,
                        "height": height,
                        "width": width,
                        "pixels": pixels.tobytes(),
                        "mask": mask,
                        "source_uri": "",
                    }
                )
                number += 1
            writer.append(
                pa.Table.from_pylist(rows, schema=schema.ARCHIVE), schema.REJECTS.empty_table()
            )
        writer.close()
    return Archive(str(folder))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """400 slices in 7 row groups; 320 of them annotated."""
    return write_archive(tmp_path, {"A": 100, "B": 250, "C": 50})


def test_the_annotated_slices_of_each_patient_are_found(archive: Archive) -> None:
    rows = find_annotated(archive, mixed_sizes=False)
    assert rows.counts() == {"A": 80, "B": 200, "C": 40}
    assert rows.of(["C", "A"]).counts() == {"A": 80, "C": 40}
    assert len(rows.of(["B"])) == 200


def test_a_batch_holds_the_slices_that_were_asked_for(archive: Archive) -> None:
    slices = Slices(
        archive, find_annotated(archive, mixed_sizes=False).of(["A", "C"]), image_size=2
    )
    pixels, mask, indices = slices[[81, 3, 4]]
    # of A the numbers 0 to 99 without 4, 9, …; so index 4 is number 5, and index 81 the second of C, which begins with 350
    assert pixels[:, 0, 0, 0].tolist() == [351 % 256, 3, 5]
    assert pixels.shape == (3, 2, 2, 2)
    assert mask.shape == (3, 2, 2)
    assert int(mask.min()) == 1
    assert indices.tolist() == [81, 3, 4]


def test_streaming_gives_the_same_slices_and_keeps_few_row_groups(archive: Archive) -> None:
    rows = find_annotated(archive, mixed_sizes=False)
    whole, streamed = Slices(archive, rows, 2), Slices(archive, rows, 2, keep_groups=3)
    for start in range(0, 320, 32):
        batch = list(range(start, start + 32))
        assert all(torch.equal(a, b) for a, b in zip(whole[batch], streamed[batch], strict=True))
        assert len(streamed._kept) <= 3
    assert len(whole._kept) == 7


def test_a_streamed_epoch_reads_each_row_group_once_and_holds_each_slice_once(
    archive: Archive,
) -> None:
    streamed = Slices(archive, find_annotated(archive, mixed_sizes=False), 2, keep_groups=4)
    read: list[int] = []
    original = streamed._read
    streamed._read = lambda number: (read.append(number), original(number))[1]  # type: ignore[method-assign, func-returns-value]
    order = streamed.shuffled(seed=1)
    for index in order:
        streamed[[index]]
    assert sorted(order) == list(range(320))
    assert sorted(read) == list(range(7))
    assert order != streamed.shuffled(seed=2)
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(order))
    assert neighbours < 20  # shuffled within the row groups that are kept, too


def rows_of(slices_a_group: list[int]) -> SliceRows:
    """Annotated slices in some of many row groups; only their places count."""
    shard_n = np.repeat(np.arange(len(slices_a_group)), slices_a_group).astype(np.int32)
    count = len(shard_n)
    shards = tuple(Shard("part.parquet", n, n + 1, 64) for n in range(len(slices_a_group)))
    zeros = np.zeros(count, np.int32)
    return SliceRows(shards, shard_n, zeros, ("A",), zeros)


def groups_of_batches(rows: SliceRows, archive: Archive) -> float:
    """Mean number of row groups that a batch of 16 comes from, in a streamed epoch."""
    slices = Slices(archive, rows, 2, keep_groups=16)
    batches = GlobalBatches(slices, 16, 1, 0, 1, seed=0)
    return float(np.mean([len({rows.shard_n[index] for index in batch}) for batch in batches]))


def test_batches_mix_as_many_row_groups_where_few_are_annotated(archive: Archive) -> None:
    every = groups_of_batches(rows_of([64] * 40), archive)
    one_in_a_hundred = groups_of_batches(rows_of(([64] + [0] * 99) * 40), archive)
    assert every > 8
    assert one_in_a_hundred == pytest.approx(every, rel=0.05)


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_streaming_worker_reads_row_groups_of_its_own(archive: Archive, world_size: int) -> None:
    rows = rows_of([64, 10, 0, 64, 30, 64, 64, 5, 40])
    slices = Slices(archive, rows, 2, keep_groups=4)
    samplers = [
        GlobalBatches(slices, 12, 1, rank, world_size, seed=0) for rank in range(world_size)
    ]
    own = [[index for batch in sampler for index in batch] for sampler in samplers]
    assert len({len(sampler) for sampler in samplers}) == 1
    assert [len(indices) for indices in own] == [len(samplers[0]) * 12 // world_size] * world_size
    groups = [{int(rows.shard_n[index]) for index in indices} for indices in own]
    for one, other in itertools.combinations(groups, 2):
        assert one.isdisjoint(other)
    assert all(len(set(indices)) == len(indices) for indices in own)
    assert len(samplers[0]) * 12 > 0.7 * len(rows)


def test_the_change_of_a_slice_does_not_depend_on_the_number_of_workers(archive: Archive) -> None:
    slices = Slices(archive, find_annotated(archive, mixed_sizes=False), 2)

    def numbers(world_size: int) -> dict[int, list[float]]:
        found = {}
        for rank in range(world_size):
            loader = Loader(slices, GlobalBatches(slices, 30, 1, rank, world_size, seed=0), CPU)
            for _, _, indices, random_nk in loader:
                found |= dict(zip(indices.tolist(), random_nk.tolist(), strict=True))
        return found

    assert numbers(1) == numbers(2)


def test_shrinking_takes_the_mean_and_not_the_nearest_pixel() -> None:
    stripes = torch.zeros(1, 4, 4, 1, dtype=torch.uint8)
    stripes[:, :, 1::2] = 200  # columns of 0 and 200 in turn
    shrunk = pixels_to_nchw(stripes, 2)
    assert float(shrunk.min()) > 60
    assert float(shrunk.max()) < 140


def test_slices_are_scaled_to_the_image_size_and_padded(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, {"A": 2}, height=8, width=4)
    slices = Slices(archive, find_annotated(archive, mixed_sizes=False), image_size=4)
    pixels, mask, _ = slices[[1]]
    assert pixels.shape == (1, 4, 4, 2)
    assert pixels[0, :, :, 0].tolist() == [[1, 1, 0, 0]] * 4
    assert mask[0].tolist() == [[1, 1, 0, 0]] * 4


def test_statistics_are_those_of_each_channel(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, {"A": 2})  # values 0 and 1 of 255
    statistics = Slices(archive, find_annotated(archive, mixed_sizes=False), 2).statistics()
    assert statistics.mean == pytest.approx((0.5 / 255, 0.0))
    assert statistics.std == pytest.approx(
        (0.5 / 255, 1.0)
    )  # a constant channel is not divided by zero


def test_a_mask_with_other_values_than_0_and_1_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, {"A": 2}, mask_value=255)
    with pytest.raises(ArchiveError, match="the mask of slice 'A_001' holds 255, expected 0 and 1"):
        find_annotated(archive, mixed_sizes=False)


def test_an_archive_without_masks_is_refused(tmp_path: Path) -> None:
    with ArchiveWriter(
        str(tmp_path), source="test", channels=("a",), intensity_scaling="none", overwrite=False
    ) as writer:
        writer.close()
    with pytest.raises(ArchiveError, match="no slice has a mask"):
        find_annotated(Archive(str(tmp_path)), mixed_sizes=False)


def test_a_slice_with_a_wrong_number_of_bytes_is_refused_with_its_file(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, {"A": 2})
    (part,) = tmp_path.glob("slices-*.parquet")
    table = pq.read_table(part)
    pixels = pa.array([bytes(8), bytes(7)], pa.binary())
    pq.write_table(table.set_column(table.schema.get_field_index("pixels"), "pixels", pixels), part)
    slices = Slices(archive, find_annotated(archive, mixed_sizes=False), 2)
    with pytest.raises(
        ArchiveError,
        match=f"{part}: slice 'A_002' holds 7 bytes in column 'pixels', expected 2x2x2 = 8; ingest this patient again",
    ):
        slices.load()


def test_mixed_sizes_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    with ArchiveWriter(
        str(tmp_path), source="test", channels=("a",), intensity_scaling="none", overwrite=False
    ) as writer:
        for patient, side in (("A", 2), ("B", 4)):
            row = {
                "slice_id": patient,
                "patient_id": patient,
                "series_id": patient,
                "slice_index": 1,
                "height": side,
                "width": side,
                "pixels": bytes(side * side),
                "mask": bytes(side * side),
                "source_uri": "",
            }
            writer.append(
                pa.Table.from_pylist([row], schema=schema.ARCHIVE), schema.REJECTS.empty_table()
            )
        writer.close()
    archive = Archive(str(tmp_path))
    with pytest.raises(
        ArchiveError, match=r"slices of 2 sizes: 'A' is 2x2 pixels, 'B' 4x4; give --mixed-sizes"
    ):
        find_annotated(archive, mixed_sizes=False)
    assert len(find_annotated(archive, mixed_sizes=True)) == 2


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (3, 2)])
def test_workers_share_each_batch_without_overlap(
    archive: Archive, world_size: int, accumulate: int
) -> None:
    slices = Slices(archive, find_annotated(archive, mixed_sizes=False), 2)
    whole = list(GlobalBatches(slices, 30, 1, 0, 1, seed=0))
    parts = [
        list(GlobalBatches(slices, 30, accumulate, rank, world_size, seed=0))
        for rank in range(world_size)
    ]
    assert len(whole) == 10  # 320 slices are 10 whole batches of 30
    assert [len(part) for part in parts] == [10 * accumulate] * world_size
    for step, batch in enumerate(whole):
        passes = range(step * accumulate, (step + 1) * accumulate)
        assert sorted(index for n in passes for part in parts for index in part[n]) == sorted(batch)
    assert len({index for batch in whole for index in batch}) == 300


def test_the_order_depends_on_the_epoch_and_the_seed_alone(archive: Archive) -> None:
    slices = Slices(archive, find_annotated(archive, mixed_sizes=False), 2)
    one, again = (
        GlobalBatches(slices, 10, 1, 0, 1, seed=3),
        GlobalBatches(slices, 10, 1, 0, 1, seed=3),
    )
    first = list(one)
    assert first == list(one)
    one.epoch = again.epoch = 1
    assert list(one) == list(again) != first


def test_validation_portions_cover_every_slice_once() -> None:
    portions = [index for rank in range(3) for batch in Portion(10, 2, rank, 3) for index in batch]
    assert sorted(portions) == list(range(10))


def test_a_loader_gives_the_sampler_s_batches_in_its_order(archive: Archive) -> None:
    slices = Slices(archive, find_annotated(archive, mixed_sizes=False), 2)
    sampler = GlobalBatches(slices, 7, 1, 0, 1, seed=0)
    batches = [indices.tolist() for _, _, indices, _ in Loader(slices, sampler, CPU)]
    assert batches == list(sampler)


def test_an_error_while_reading_ahead_reaches_the_training(archive: Archive) -> None:
    slices = Slices(archive, find_annotated(archive, mixed_sizes=False), 2)
    next(Path(archive.uri).glob("*.parquet")).write_bytes(b"PAR1 no more")
    with pytest.raises(ArchiveError, match="not a readable Parquet file"):
        list(Loader(slices, GlobalBatches(slices, 7, 1, 0, 1, seed=0), CPU))
