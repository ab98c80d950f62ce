"""What each actor of a segmentation runs: a shard of slices in, a published file of masks out."""

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from ray.util.queue import Queue

from segmodel import archive as archives
from segmodel import checkpoint, schema, storage
from segmodel.archive import Shard
from segmodel.images import encode_mask
from segmodel.models import set_up_cpu
from segmodel.predictor import Prediction, Predictor
from segmodel.shardreader import read_shard

_COPIED = [name for name in schema.MASKS.names if name in schema.ARCHIVE.names and name != "mask"]


class SegmentShards:
    """Loads the model once, then segments shard after shard.

    Args:
        archive, checkpoint_folder, output: URIs.
        batch_size: slices a forward pass.
        threshold: a pixel is tumor where its probability is greater.
        tta: test-time augmentation.
        use_gpu: run on the actor's GPU.
        threads: CPU threads for torch; None leaves its default.
        queue: gets a message a batch.
    """

    def __init__(
        self,
        archive: str,
        checkpoint_folder: str,
        output: str,
        batch_size: int,
        threshold: float,
        tta: bool,
        use_gpu: bool,
        threads: int | None,
        queue: Queue,
    ) -> None:
        set_up_cpu(threads)
        model, card = checkpoint.load(checkpoint_folder)
        device = torch.device("cuda" if use_gpu else "cpu")
        self.predictor = Predictor(model, card, batch_size=batch_size, threshold=threshold, device=device, tta=tta)
        self.archive, self.output, self.queue = archive, output, queue

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """Segment one shard: a batch of one row, the fields of `Shard`."""
        shard = Shard(
            file=str(batch["file"][0]),
            first_row_group=int(batch["first_row_group"][0]),
            stop_row_group=int(batch["stop_row_group"][0]),
            slices=int(batch["slices"][0]),
        )
        table, quarantine = read_shard(self.archive, shard, self.predictor.card.model.channels)
        rows = [self._rows(table, batch) for batch in self._batches(table)]
        masks = pa.concat_tables([schema.MASKS.empty_table(), *rows])
        # The masks are what says that the shard is done: they are published last. An earlier attempt may have left a quarantine
        # file; it is replaced or removed before them.
        quarantine_uri = storage.join(self.output, "quarantine", shard.output_file)
        if quarantine.num_rows:
            storage.publish_table(quarantine_uri, quarantine)
            self.queue.put({"slices": quarantine.num_rows, "quarantined": quarantine.num_rows})
        else:
            storage.remove(quarantine_uri)
        storage.publish_table(storage.join(self.output, "masks", shard.output_file), masks)
        return {"shard": [shard.name], "segmented": [masks.num_rows], "quarantined": [quarantine.num_rows]}

    def _batches(self, table: pa.Table) -> Iterator[list[int]]:
        """Row numbers of slices of one size, at most a batch of them."""
        shapes = list(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True))
        for _, group in groupby(sorted(range(table.num_rows), key=lambda row: shapes[row]), key=lambda row: shapes[row]):
            same = list(group)
            for start in range(0, len(same), self.predictor.batch_size):
                yield same[start : start + self.predictor.batch_size]

    def _rows(self, table: pa.Table, rows: list[int]) -> pa.Table:
        chosen = table.take(rows)
        height, width = chosen["height"][0].as_py(), chosen["width"][0].as_py()
        channels = self.predictor.card.model.channels
        pixels_nhwc = np.stack([archives.image(pixels, height, width, channels) for pixels in chosen["pixels"]])
        prediction = self.predictor.predict(pixels_nhwc)
        self.queue.put({"slices": len(rows), "quarantined": 0})
        return _mask_rows(chosen, prediction)


def _mask_rows(slices: pa.Table, prediction: Prediction) -> pa.Table:
    columns = {name: slices[name] for name in _COPIED} | {
        "mask": [encode_mask(mask_hw) for mask_hw in prediction.mask_nhw],
        "tumor_pixels": prediction.tumor_pixels_n,
        "mean_probability": [None if math.isnan(mean) else mean for mean in prediction.mean_probability_n.tolist()],
        "uncertainty": prediction.uncertainty_n,
    }
    return pa.table([_column(columns[field.name], field.type) for field in schema.MASKS], schema=schema.MASKS)


def _column(values: Any, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)
