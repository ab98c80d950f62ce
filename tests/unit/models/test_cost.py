from torch import nn

from segmodel.models.cost import activation_bytes, count_flops, count_parameters
from segmodel.models.registry import ModelSettings

TINY = ModelSettings(arch="classical", channels=1, width=1)


def test_frozen_weights_are_not_counted_as_trainable() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert count_parameters(model) == 6


def test_flops_of_the_classical_network_are_those_of_its_convolutions() -> None:
    # A 3x3 convolution from a to b channels does 2 * 9ab operations a pixel, an up-convolution 2ab
    # for each pixel that it makes. Sides 32, 16, 8, 4, 2.
    pixels = [32 * 32, 16 * 16, 8 * 8, 4 * 4, 2 * 2]
    products = [1 + 1, 2 + 4, 8 + 16, 32 + 64, 128 + 256]  # ab of each level's two convolutions
    down = sum(18 * ab * n for ab, n in zip(products, pixels, strict=True))
    up = sum(2 * 2 * b * b * n for b, n in zip([1, 2, 4, 8], pixels[:4], strict=True))
    merge = sum(18 * (2 * b * b + b * b) * n for b, n in zip([1, 2, 4, 8], pixels[:4], strict=True))
    head = 2 * 1 * 2 * pixels[0]
    assert count_flops(TINY, image_size=32) == down + up + merge + head


def test_memory_for_the_gradient_grows_with_the_square_of_the_image_size() -> None:
    small, large = activation_bytes(TINY, image_size=32), activation_bytes(TINY, image_size=64)
    assert large == 4 * small
    # Each of the two first convolutions keeps its input and has its output kept: 4 bytes a pixel.
    assert small > 3 * 4 * 32 * 32
