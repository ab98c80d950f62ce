import io

import numpy as np
import pytest
from PIL import Image

from segmodel.core.mask_png import decode_mask, encode_mask


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 3), (1, 9), (8, 16)])
def test_a_mask_of_any_shape_comes_back_as_it_was(shape: tuple[int, int]) -> None:
    mask_hw = np.arange(shape[0] * shape[1]).reshape(shape) % 3 == 0
    decoded = decode_mask(encode_mask(mask_hw))
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask_hw)


@pytest.mark.parametrize("value", [False, True])
def test_a_mask_of_one_value_comes_back_as_it_was(value: bool) -> None:
    np.testing.assert_array_equal(
        decode_mask(encode_mask(np.full((2, 3), value))), np.full((2, 3), value)
    )


def test_rows_that_are_not_contiguous_in_memory_come_back_as_they_were() -> None:
    mask_hw = np.array([[1, 0, 0], [1, 1, 0]], dtype=bool).T
    np.testing.assert_array_equal(decode_mask(encode_mask(mask_hw)), mask_hw)


def test_a_mask_is_stored_as_a_one_bit_png_of_its_own_height_and_width() -> None:
    with Image.open(io.BytesIO(encode_mask(np.ones((2, 7), dtype=bool)))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "1", (7, 2))
