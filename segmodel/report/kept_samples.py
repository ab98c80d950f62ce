"""Slices that a training keeps for its page, as a Parquet file, and how the page shows them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segmodel.core.mask_png import decode_mask, encode_mask
from segmodel.report import embed
from segmodel.report.figures import Sample
from segmodel.report.slice_picture import SlicePicture, outline
from segmodel.storage import store

SAMPLES, PREDICTIONS = "samples.parquet", "predictions.parquet"
"""Training slices; validation slices with what the best epoch's network predicts."""

SCHEMA = pa.schema(
    [
        pa.field("title", pa.string(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("truth", pa.binary(), nullable=False),
        pa.field("prediction", pa.binary()),
    ]
)


def publish(uri: str, samples: Sequence[Sample]) -> None:
    """Write samples, whole or not at all."""
    rows = [
        {
            "title": sample.title,
            "note": sample.note,
            "height": sample.image_hw.shape[0],
            "width": sample.image_hw.shape[1],
            "image": sample.image_hw.tobytes(),
            "truth": encode_mask(sample.truth_hw),
            "prediction": None
            if sample.prediction_hw is None
            else encode_mask(sample.prediction_hw),
        }
        for sample in samples
    ]
    store.publish_table(uri, pa.Table.from_pylist(rows, schema=SCHEMA))


def read(uri: str) -> list[Sample]:
    """The samples of a file; none where there is no file."""
    if not store.exists(uri):
        return []
    with store.open_parquet(uri) as file:
        return [_sample(row) for row in file.read().to_pylist()]


def draw(sample: Sample) -> SlicePicture:
    """A sample as a part of a page."""
    height, width = sample.image_hw.shape
    brightest = max(1.0, float(np.percentile(sample.image_hw, 99.5)))
    grey = np.clip(sample.image_hw * (255.0 / brightest), 0, 255).astype(np.uint8)
    return SlicePicture(
        uri=embed.picture(grey),
        size=(width, height),
        grid=(width, height),
        predicted="" if sample.prediction_hw is None else outline(sample.prediction_hw),
        truth=outline(sample.truth_hw),
        sides=None,
        bar=None,
        alt=sample.title,
        caption=" · ".join(filter(None, [sample.title, sample.note])),
    )


def _sample(row: dict[str, Any]) -> Sample:
    image: npt.NDArray[np.uint8] = np.frombuffer(row["image"], np.uint8)
    return Sample(
        title=row["title"],
        image_hw=image.reshape(row["height"], row["width"]),
        truth_hw=decode_mask(row["truth"]),
        prediction_hw=None if row["prediction"] is None else decode_mask(row["prediction"]),
        note=row["note"],
    )
