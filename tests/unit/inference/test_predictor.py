from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import nn

from segmodel.core.errors import ArchiveError
from segmodel.data.preprocessing import normalise, pixels_to_nchw
from segmodel.inference.precision import Precision
from segmodel.inference.predictor import (
    BIT_VALUES,
    Prediction,
    Predictor,
    pack_bits,
    padded_size,
)
from segmodel.models.classes import TUMOR
from tests.support import standin
from tests.support.device_waits import DeviceWaits


def predictor(
    image_size: int,
    batch_size: int = 4,
    threshold: float = 0.5,
    tta: bool = False,
    model: nn.Module | None = None,
    precision: Precision = "fp32",
) -> Predictor:
    return Predictor(
        model or standin.flair_threshold_model(),
        standin.card(image_size),
        batch_size=batch_size,
        threshold=threshold,
        device=torch.device("cpu"),
        precision=precision,
        tta=tta,
    )


def slices(n: int, height: int, width: int) -> np.ndarray:
    return np.zeros((n, height, width, 3), dtype=np.uint8)


def test_mask_holds_exactly_the_bright_pixels() -> None:
    pixels = slices(1, 32, 32)
    pixels[0, 3:5, 10:14, 1] = 200  # 2 x 4 pixels of FLAIR
    pixels[0, 20, 20, 0] = 255  # bright, but not in FLAIR
    prediction = predictor(32).predict(pixels)
    assert prediction.tumor_pixels_n.tolist() == [8]
    assert np.argwhere(prediction.mask_nhw[0]).tolist() == [
        [y, x] for y in (3, 4) for x in range(10, 14)
    ]


def test_mean_probability_is_that_of_the_masks_pixels_and_nan_without_any() -> None:
    pixels = slices(2, 32, 32)
    pixels[0, 0, 0, 1] = 191  # logit 191 - 185 - 5 = 1, probability 1 / (1 + e^-1) = 0.731059
    prediction = predictor(32).predict(pixels)
    assert prediction.mean_probability_n[0] == pytest.approx(0.731059, abs=1e-5)
    assert np.isnan(prediction.mean_probability_n[1])


def test_probabilities_never_exceed_one_where_interpolation_rounds_above_it() -> None:
    pixels = slices(1, 240, 240)
    pixels[0, 60:180, 60:180, 1] = 255  # a logit of 65: probability 1
    prediction = predictor(256).predict(pixels)
    assert prediction.tumor_pixels_n[0] >= 119 * 119
    assert prediction.probability_sum_n[0] <= 121 * 121 + 240 * 240 * 0.0067 + 4 * 121


def test_the_probability_sum_is_the_area_that_the_model_expects() -> None:
    pixels = slices(2, 32, 32)
    pixels[1, ..., 1] = 190  # logit 190 - 185 - 5 = 0 everywhere: one half
    sums = predictor(32).predict(pixels).probability_sum_n
    assert sums[0] == pytest.approx(32 * 32 / (1 + np.exp(5.0)), rel=1e-4)  # logit -5 everywhere
    assert sums[1] == pytest.approx(32 * 32 / 2, rel=1e-6)


def test_in_bfloat16_the_mask_of_clear_pixels_is_the_same() -> None:
    pixels = slices(1, 32, 32)
    pixels[0, 3:5, 10:14, 1] = 250
    plain, short = (
        predictor(32, precision=precision).predict(pixels) for precision in ("fp32", "bf16")
    )
    assert (plain.mask_nhw == short.mask_nhw).all()
    assert short.probability_sum_n[0] == pytest.approx(plain.probability_sum_n[0], rel=0.02)


@pytest.mark.parametrize(
    ("n", "padded"), [(1, 16), (16, 16), (17, 32), (33, 64), (65, 128), (128, 128)]
)
def test_a_pass_is_padded_to_one_of_a_few_sizes(n: int, padded: int) -> None:
    assert padded_size(n, 128, compiled=False) == padded
    assert padded_size(n, 128, compiled=True) == 128  # each size would be compiled


@pytest.mark.parametrize("tta", [False, True])
def test_nothing_between_the_pixels_and_the_masks_waits_for_the_device(tta: bool) -> None:
    own = predictor(64, tta=tta)
    pixels = torch.zeros(2, 24, 40, 3, dtype=torch.uint8)
    with DeviceWaits() as waits, torch.inference_mode():
        own._masks(pixels)
    assert waits.found == {}


def test_threshold_is_exclusive() -> None:
    pixels = slices(1, 32, 32)
    pixels[..., 1] = 190  # probability exactly one half
    assert predictor(32, threshold=0.5).predict(pixels).tumor_pixels_n.tolist() == [0]
    assert predictor(32, threshold=0.49).predict(pixels).tumor_pixels_n.tolist() == [32 * 32]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 32), (32, 7), (1, 32)])
def test_a_slice_that_is_no_multiple_of_32_is_padded_and_cropped_back(
    height: int, width: int
) -> None:
    pixels = slices(1, height, width)
    pixels[0, -1, -1, 1] = 255
    mask = predictor(32).predict(pixels).mask_nhw
    assert mask.shape == (1, height, width)
    assert np.argwhere(mask[0]).tolist() == [[height - 1, width - 1]]


def test_a_slice_twice_as_large_as_in_training_gets_a_mask_of_its_own_size() -> None:
    pixels = slices(1, 64, 64)
    pixels[0, 16:48, 16:48, 1] = 255
    mask = predictor(32).predict(pixels).mask_nhw[0]
    assert mask.shape == (64, 64)
    assert mask[18:46, 18:46].all()
    assert not mask[:14].any()
    assert not mask[:, 50:].any()


def test_a_short_batch_gives_what_a_full_one_gives() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    full, short = predictor(32).predict(pixels), predictor(32).predict(pixels[:3])
    assert (full.mask_nhw[:3] == short.mask_nhw).all()
    assert full.tumor_pixels_n[:3].tolist() == short.tumor_pixels_n.tolist()


def test_predictions_equal_the_models_own_forward_pass() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    card = standin.card(32)
    x = normalise(
        pixels_to_nchw(torch.from_numpy(pixels), 32),
        torch.tensor(card.mean),
        torch.tensor(card.std),
    )
    probability = standin.flair_threshold_model()(x).softmax(dim=1)[:, TUMOR]
    assert (predictor(32).predict(pixels).mask_nhw == (probability > 0.5).numpy()).all()


def test_compiled_the_prediction_is_the_same() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    plain = predictor(32, tta=True).predict(pixels)
    with_compiler = predictor(32, tta=True)
    with_compiler._compiled = torch.compile(
        with_compiler._masks, backend="aot_eager", dynamic=False, fullgraph=True
    )
    found = with_compiler.predict(pixels)
    assert (found.mask_nhw == plain.mask_nhw).all()
    np.testing.assert_allclose(found.probability_sum_n, plain.probability_sum_n, rtol=1e-5)


def test_slices_of_more_sizes_than_the_compiler_keeps_run_uncompiled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch._dynamo.reset()
    compiled = predictor(32)
    compiled._compiled = torch.compile(
        compiled._masks, backend="aot_eager", dynamic=False, fullgraph=True
    )
    with torch._dynamo.config.patch(recompile_limit=2):
        for width in (32, 24, 16, 32, 24, 16):
            pixels = slices(1, 32, width)
            pixels[0, 3:5, 10:14, 1] = 200
            assert (
                compiled.predict(pixels).tumor_pixels_n.tolist()
                == predictor(32).predict(pixels).tumor_pixels_n.tolist()
            )
    assert capsys.readouterr().out.count("slices of 32x16 run uncompiled") == 1
    assert compiled._uncompiled == {(32, 16)}


def test_where_the_compiler_does_not_work_the_network_runs_uncompiled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def without_a_c_compiler(graph: object, inputs: object) -> NoReturn:
        raise RuntimeError("no C compiler")

    pixels = slices(1, 32, 32)
    pixels[0, 3:5, 10:14, 1] = 200
    broken = predictor(32)
    broken._compiled = torch.compile(broken._masks, backend=without_a_c_compiler)
    assert broken.predict(pixels).tumor_pixels_n.tolist() == [8]
    assert broken.predict(pixels).tumor_pixels_n.tolist() == [8]
    assert capsys.readouterr().out.count("torch.compile does not work here") == 1


def test_several_batches_may_be_begun_before_the_first_is_waited_for() -> None:
    pixels = slices(2, 32, 32)
    pixels[1, 3:5, 10:14, 1] = 200
    small = predictor(32)
    first, second = small.begin(pixels[:1]), small.begin(pixels[1:])
    assert (second().tumor_pixels_n.tolist(), first().tumor_pixels_n.tolist()) == ([8], [0])


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ArchiveError, match="1 channels, the model was trained on 3"):
        predictor(32).predict(np.zeros((1, 32, 32, 1), dtype=np.uint8))


class LeftHalf(nn.Module):
    """Probability 0.8 in the left half of whatever it is shown, 0.2 in the right one."""

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        logits_nchw = torch.zeros(len(x_nchw), 2, *x_nchw.shape[-2:])
        logits_nchw[:, TUMOR] = -np.log(4)
        logits_nchw[:, TUMOR, :, : x_nchw.shape[-1] // 2] = np.log(4)
        return logits_nchw


def test_test_time_augmentation_takes_the_mean_over_mirror_images() -> None:
    """Left half: 0.8 plain and upside down, 0.2 in the two images mirrored left to right."""
    alone = predictor(32, model=LeftHalf()).predict(slices(1, 32, 32))
    assert alone.tumor_pixels_n.tolist() == [16 * 32]
    mean = predictor(32, tta=True, threshold=0.49, model=LeftHalf()).predict(slices(1, 32, 32))
    assert mean.tumor_pixels_n.tolist() == [32 * 32]
    assert mean.mean_probability_n[0] == pytest.approx(0.5, abs=1e-6)
    assert mean.probability_sum_n[0] == pytest.approx(32 * 32 / 2, rel=1e-5)


def test_test_time_augmentation_puts_each_mask_back_where_its_tumor_is() -> None:
    pixels = slices(1, 32, 32)
    pixels[0, 3:5, 10:14, 1] = 200
    prediction = predictor(32, tta=True).predict(pixels)
    assert np.argwhere(prediction.mask_nhw[0]).tolist() == [
        [y, x] for y in (3, 4) for x in range(10, 14)
    ]


class NoPinnedMemory(torch.AcceleratorError):
    error_code = 2


class BrokenMemory(torch.AcceleratorError):
    error_code = 214


class Greedy(nn.Module):
    """Runs out of memory, or fails as told, with more than `most` slices."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        super().__init__()
        self.most, self.error, self.inner, self.seen = (
            most,
            error,
            standin.flair_threshold_model(),
            [],
        )

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x_nchw))
        if len(x_nchw) > self.most:
            if self.error is not None:
                raise self.error
            torch.empty(2**55, dtype=torch.uint8)
        return self.inner(x_nchw)


def test_a_batch_that_the_memory_does_not_hold_goes_through_in_halves_from_then_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pixels = slices(7, 32, 32)
    for n in range(7):
        pixels[n, 0, :n, 1] = 200  # n pixels of tumor in slice n
    model = Greedy(most=2)
    small = predictor(32, batch_size=7, model=model)
    assert small.predict(pixels).tumor_pixels_n.tolist() == list(range(7))
    assert model.seen == [7, 4, 2, 2, 2, 1]
    assert small.predict(pixels).tumor_pixels_n.tolist() == list(range(7))
    assert model.seen[6:] == [2, 2, 2, 1]
    assert capsys.readouterr().out.count("out of memory") == 2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        NoPinnedMemory("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_every_error_for_too_little_gpu_memory_halves_the_batch(error: Exception) -> None:
    model = Greedy(most=2, error=error)
    assert (
        predictor(32, batch_size=4, model=model).predict(slices(4, 32, 32)).tumor_pixels_n.tolist()
        == [0] * 4
    )
    assert model.seen == [4, 2, 2]


def test_other_errors_and_a_single_slice_that_does_not_fit_are_raised() -> None:
    with pytest.raises(MemoryError, match="one slice of 32x32 pixels does not fit"):
        predictor(32, batch_size=2, model=Greedy(most=0)).predict(slices(2, 32, 32))
    with pytest.raises(BrokenMemory):
        predictor(32, batch_size=2, model=Greedy(most=1, error=BrokenMemory("ECC"))).predict(
            slices(2, 32, 32)
        )
    with pytest.raises(RuntimeError, match="expected input"):
        predictor(32, batch_size=2, model=nn.Conv2d(5, 2, 1)).predict(slices(2, 32, 32))


@pytest.mark.parametrize("width", [1, 7, 8, 9, 250])
def test_masks_come_back_eight_pixels_a_byte_as_numpy_packs_them(width: int) -> None:
    mask_nhw = np.random.default_rng(width).random((2, 3, width)) > 0.5
    bits_nhb = pack_bits(
        torch.from_numpy(mask_nhw), torch.tensor(BIT_VALUES, dtype=torch.uint8)
    ).numpy()
    assert (bits_nhb == np.packbits(mask_nhw, axis=2)).all()
    nothing = np.zeros(2)
    assert (Prediction(bits_nhb, width, nothing, nothing, nothing).mask_nhw == mask_nhw).all()
