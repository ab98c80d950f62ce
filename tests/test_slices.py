import torch

from segmodel.slices import GlobalBatches, Portion, SliceDataset, normalise, pad_to_multiple, pixels_to_nchw, scaled_shape


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


def test_statistics_are_those_of_each_channel() -> None:
    pixels = torch.zeros(2, 1, 1, 2, dtype=torch.uint8)
    pixels[1, ..., 0] = 255  # values 0 and 1: mean 0.5, deviation 0.5
    statistics = SliceDataset(pixels, torch.zeros(2, 1, 1)).statistics()
    assert statistics.mean == (0.5, 0.0)
    assert statistics.std == (0.5, 1.0)  # a constant channel is not divided by zero


def test_two_workers_share_each_batch_without_overlap() -> None:
    first, second = (list(GlobalBatches(10, 4, rank, 2, seed=0)) for rank in (0, 1))
    whole = list(GlobalBatches(10, 4, 0, 1, seed=0))
    assert len(first) == len(second) == 2  # 10 slices are 2 whole batches of 4
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    assert len({index for batch in whole for index in batch}) == 8


def test_the_order_changes_from_epoch_to_epoch_and_repeats_with_the_seed() -> None:
    sampler, again = GlobalBatches(50, 10, 0, 1, seed=3), GlobalBatches(50, 10, 0, 1, seed=3)
    one, two = list(sampler), list(sampler)
    assert one != two
    assert [list(again), list(again)] == [one, two]


def test_validation_portions_cover_every_slice_once() -> None:
    portions = [index for rank in range(3) for batch in Portion(10, 2, rank, 3) for index in batch]
    assert sorted(portions) == list(range(10))
