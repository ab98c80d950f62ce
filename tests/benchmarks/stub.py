"""A stand-in for a network that costs next to nothing: reading, encoding and writing remain."""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from segmodel.inference.predictor import Prediction
from segmodel.segmentation.worker import SegmentShards
from segmodel.sources.phantom import FLAIR

FLOOR = 185
"""Between the brightest tissue and the darkest lesion of a phantom."""


def predict(pixels_nhwc: npt.NDArray[np.uint8]) -> Prediction:
    """The lesion of phantoms, found by a threshold."""
    mask_nhw = pixels_nhwc[..., FLAIR] > FLOOR
    tumor_pixels_n = mask_nhw.sum(axis=(1, 2))
    ones_n = np.ones(len(mask_nhw), dtype=np.float32)
    return Prediction(
        np.packbits(mask_nhw, axis=2), mask_nhw.shape[2], tumor_pixels_n, ones_n, 0 * ones_n
    )


class StubSegmentShards(SegmentShards):
    """The worker of a segmentation, but for the network."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.predictor.begin = lambda pixels_nhwc: partial(predict, pixels_nhwc)  # type: ignore[method-assign]
