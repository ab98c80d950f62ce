import pytest
import torch

from segmodel.data.augmentation import (
    Augmentation,
    remove_sequences,
    rotate_and_flip,
    scale_intensity,
    slice_random_numbers,
)


def test_image_and_mask_move_alike() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(16, 64, 64, dtype=torch.uint8)
    mask[:, 8:40, 20:30] = 1
    image, moved = rotate_and_flip(
        mask[:, None].float(), mask, max_degrees=15, max_zoom=1.2, random_n4=torch.rand(16, 4)
    )
    assert (
        (image[:, 0] > 0.5) == (moved == 1)
    ).float().mean() > 0.995  # bilinear and nearest differ at the rim alone
    assert sum(bool((moved[n] != mask[n]).any()) for n in range(16)) >= 12


def test_a_rotation_keeps_areas_and_shapes_mirrored_or_not() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(32, 128, 128, dtype=torch.uint8)
    mask[:, 40:88, 60:68] = 1  # 48 x 8 pixels
    _, moved = rotate_and_flip(
        mask[:, None].float(), mask, max_degrees=40, max_zoom=1, random_n4=torch.rand(32, 4)
    )
    for n in range(32):
        places = torch.nonzero(moved[n]).double()
        assert len(places) == pytest.approx(384, rel=0.05)
        # Variances along the main axes of a 48 x 8 rectangle: (48^2 - 1) / 12 and (8^2 - 1) / 12.
        # A shear would change them.
        narrow, wide = torch.linalg.eigvalsh(torch.cov(places.T)).tolist()
        assert wide == pytest.approx(191.9, rel=0.05)
        assert narrow == pytest.approx(5.25, rel=0.15)


def test_a_rotation_of_a_slice_that_is_not_square_is_one_of_pixels() -> None:
    torch.manual_seed(3)
    mask = torch.zeros(8, 64, 160, dtype=torch.uint8)
    mask[:, 28:36, 60:100] = 1  # 8 x 40 pixels
    _, moved = rotate_and_flip(
        mask[:, None].float(), mask, max_degrees=30, max_zoom=1, random_n4=torch.rand(8, 4)
    )
    for n in range(8):
        places = torch.nonzero(moved[n]).double()
        assert torch.linalg.eigvalsh(torch.cov(places.T))[1] == pytest.approx(
            133.25, rel=0.06
        )  # (40^2 - 1) / 12


def test_a_zoom_scales_areas_by_its_square_within_its_limits() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(64, 64, 64, dtype=torch.uint8)
    mask[:, 22:42, 22:42] = 1  # 400 pixels
    _, moved = rotate_and_flip(
        mask[:, None].float(), mask, max_degrees=0, max_zoom=1.5, random_n4=torch.rand(64, 4)
    )
    areas = moved.flatten(1).sum(dim=1).float() / 400
    assert 0.4 <= float(areas.min()) < 0.55  # 1 / 2.25 = 0.44
    assert 1.8 < float(areas.max()) <= 2.4  # 2.25


def test_flips_alone_are_exact_mirror_images() -> None:
    torch.manual_seed(1)
    mask = torch.zeros(32, 4, 4, dtype=torch.uint8)
    mask[:, 0, 1] = 1
    _, moved = rotate_and_flip(
        mask[:, None].float(), mask, max_degrees=0, max_zoom=1, random_n4=torch.rand(32, 4)
    )
    corners = {tuple(torch.nonzero(moved[n])[0].tolist()) for n in range(32)}
    assert corners == {(0, 1), (0, 2), (3, 1), (3, 2)}


def test_gain_scales_each_channel_of_each_slice_by_its_own_factor_within_its_limits() -> None:
    torch.manual_seed(2)
    x = torch.rand(50, 3, 4, 4) + 0.5
    factors = scale_intensity(x, 1.5, torch.rand(50, 3)) / x
    of_channel = factors[:, :, :1, :1]
    assert torch.allclose(factors, of_channel.expand_as(factors))
    assert 1 / 1.5 - 1e-6 <= float(of_channel.min()) < 0.75
    assert 1.4 < float(of_channel.max()) <= 1.5 + 1e-6
    assert len(of_channel.unique()) == 150


def test_limits_that_allow_no_change_leave_only_mirror_images() -> None:
    torch.manual_seed(4)
    x, mask = 200 * torch.rand(8, 3, 16, 16), torch.zeros(8, 16, 16, dtype=torch.uint8)
    changed, _ = Augmentation(max_rotation=0, max_zoom=1, max_gain=1)(x, mask, torch.rand(8, 8))
    for before, after in zip(x, changed, strict=True):
        mirrored = [before, before.flip(1), before.flip(2), before.flip(1, 2)]
        assert any(torch.allclose(after, image, atol=1e-3) for image in mirrored)


def test_a_slice_without_its_other_sequences_shows_the_kept_one_in_every_channel() -> None:
    torch.manual_seed(5)
    x = torch.rand(400, 3, 2, 2)
    taken = remove_sequences(x, 1, 0.25, torch.rand(400))
    assert torch.equal(taken[:, 1], x[:, 1])
    lacking = [bool((image == image[1]).all()) for image in taken]
    assert 70 <= sum(lacking) <= 130  # 100 expected, standard deviation 9
    assert all(torch.equal(taken[n], x[n]) for n in range(400) if not lacking[n])
    assert torch.equal(remove_sequences(x, 1, 0, torch.rand(400)), x)
    assert torch.equal(remove_sequences(x, 1, 1, torch.rand(400)), x[:, 1:2].expand_as(x))


def test_without_a_flair_channel_no_sequence_is_taken_away() -> None:
    x, mask = torch.rand(8, 2, 16, 16), torch.zeros(8, 16, 16, dtype=torch.uint8)
    limits = {"max_rotation": 0.0, "max_zoom": 1.0, "max_gain": 1.0, "missing_sequences": 1.0}
    with_flair, _ = Augmentation(**limits, flair=0)(x, mask, torch.rand(8, 7))
    assert torch.equal(with_flair[:, 0], with_flair[:, 1])
    without, _ = Augmentation(**limits)(x, mask, torch.rand(8, 7))
    assert not torch.equal(without[:, 0], without[:, 1])


def test_a_slice_has_the_same_numbers_whatever_slices_stand_beside_it() -> None:
    together = slice_random_numbers([3, 8, 5], seed=1, epoch=2, count=8)
    alone = slice_random_numbers([8], seed=1, epoch=2, count=8)
    assert torch.equal(together[1], alone[0])
    assert together.shape == (3, 8)


def test_numbers_differ_by_slice_epoch_and_seed() -> None:
    first = slice_random_numbers([8], seed=1, epoch=2, count=8)
    for other in (
        slice_random_numbers([9], 1, 2, 8),
        slice_random_numbers([8], 1, 3, 8),
        slice_random_numbers([8], 2, 2, 8),
    ):
        assert not torch.equal(first, other)


def test_numbers_are_spread_evenly_between_0_and_1() -> None:
    numbers = slice_random_numbers(list(range(2000)), seed=0, epoch=0, count=8)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert numbers.mean(dim=0).tolist() == pytest.approx([0.5] * 8, abs=0.03)
