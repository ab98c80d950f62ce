import torch

from segmodel.data.preprocessing import normalise, pad_to_multiple, pixels_to_nchw, scaled_shape


def test_the_longest_side_is_scaled_and_the_proportions_stay() -> None:
    assert scaled_shape(512, 256, 128) == (128, 64)
    assert scaled_shape(100, 300, 30) == (10, 30)


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


def test_shrinking_takes_the_mean_and_not_the_nearest_pixel() -> None:
    stripes = torch.zeros(1, 4, 4, 1, dtype=torch.uint8)
    stripes[:, :, 1::2] = 200  # columns of 0 and 200 in turn
    shrunk = pixels_to_nchw(stripes, 2)
    assert float(shrunk.min()) > 60
    assert float(shrunk.max()) < 140


def test_shrinking_to_a_quarter_takes_every_pixel_into_account() -> None:
    pixels = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    pixels[0, 0, 0] = 240  # a triangle filter gives it (0.625 / 3.5) ** 2 of the weight
    assert float(pixels_to_nchw(pixels, 2)[0, 0, 0, 0]) == 8
