"""What each actor of a segmentation runs: a shard of slices in, a published file of masks out."""

import functools
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from segmodel.archive.reader import Shard
from segmodel.archive.slice_format import images
from segmodel.core import schema
from segmodel.core.errors import SegmentationError, SegmodelError
from segmodel.core.mask_png import encode_empty_mask, encode_packed_mask
from segmodel.inference.precision import Precision
from segmodel.inference.predictor import Pending, Prediction, Predictor
from segmodel.models import checkpoint
from segmodel.models.cpu import set_up_cpu
from segmodel.runs.shard_reader import lost_shard, quarantined, read_shard, unreadable_rows
from segmodel.runtime.messages import MessageQueue
from segmodel.segmentation.crash_isolation import DEATHS, Attempt, CrashRecord, Part
from segmodel.segmentation.messages import GpuFailed, ShardProgress, WorkerDied, WorkerFailed
from segmodel.storage import parquet_recovery, s3, store
from segmodel.storage.parquet_recovery import DamagedFileError

_COPIED = [name for name in schema.MASKS.names if name in schema.ARCHIVE.names and name != "mask"]


REPORT_S = 5.0
"""Least time between two messages about a shard that is under way: 1,000 workers send some hundred a second."""
NO_NUMBER = "the network's output is not a number (too large values: another model, or another precision, may take it)"
UNDER_WAY = 2
"""Batches that a worker begins before it waits for the first of them, so that a GPU has the next one at hand."""


class Begun:
    """Slices of one size, without their pixels, and what the model says of them as soon as it has."""

    def __init__(self, slices: pa.Table, pending: Pending) -> None:
        self.slices, self.wait = slices, functools.cache(pending)


class SegmentShards:
    """Loads the model once, then segments shard after shard.

    Several threads may call it: one's slices go through the network while another one reads its shard, or writes its masks. A
    death costs the inference of the shard at which it happens, and of the one before if that is being written.

    Args:
        archive, checkpoint_folder, output: URIs.
        weights_sha256: of the model that the run was begun with; another one in the folder by now is an error.
        batch_size: slices a forward pass.
        threshold: a pixel is tumor where its probability is greater.
        precision: `bf16` or `fp32`.
        tta: test-time augmentation.
        compiled: compile the network with torch.compile.
        use_gpu: run on the actor's GPU.
        threads: CPU threads for torch; None leaves its default.
        max_starts: of workers, before one of them has done a shard; another one is an error.
        queue: gets a message now and then: the slices of a shard that are done so far, or that a worker died or failed.
        crashes: of this segmentation; it outlives the worker.
    """

    def __init__(
        self,
        archive: str,
        checkpoint_folder: str,
        output: str,
        weights_sha256: str,
        batch_size: int,
        threshold: float,
        precision: Precision,
        tta: bool,
        compiled: bool,
        use_gpu: bool,
        threads: int | None,
        max_starts: int,
        queue: MessageQueue,
        crashes: CrashRecord,
    ) -> None:
        self.queue = queue
        with report_errors(queue):
            if crashes.start() > max_starts:
                raise SegmentationError(
                    f"{max_starts} workers were started and not one shard was done: they die; the memory may be too small for "
                    "the model, or the GPU broken (see Ray's logs)"
                )
            s3.be_patient()
            self.threads = threads
            set_up_cpu(threads)
            model, card = checkpoint.load(checkpoint_folder)
            if card.weights_sha256 != weights_sha256:
                raise SegmentationError(
                    f"{checkpoint_folder} holds another model than when this run began (a training goes on there?): put that "
                    "model back, or give another --output"
                )
            device = torch.device("cuda" if use_gpu else "cpu")
            self.predictor = Predictor(
                model,
                card,
                batch_size=batch_size,
                threshold=threshold,
                device=device,
                precision=precision,
                tta=tta,
                compiled=compiled,
            )
            self.archive, self.output, self.crashes = archive, output, crashes
            self.lock = threading.Lock()

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """Segment one shard: a batch of one row, `shard` as JSON."""
        set_up_cpu(self.threads)  # of this thread
        shard = Shard.from_json(batch["shard"][0])
        with report_errors(self.queue):
            self._do(shard)
        return {"shard": [shard.name]}

    def _do(self, shard: Shard) -> None:
        attempt = self.crashes.begin(shard.name)
        if attempt.number > 1:
            self.queue.put(WorkerDied(shard.name, attempt.number))
        report = Report(self.queue, shard)
        if attempt.number > 1 and store.exists(store.join(self.output, "masks", shard.output_file)):
            report.done(shard.slices, 0)  # the worker died between publishing and saying so
            segmented = shard.slices
        elif attempt.careful:
            with self.lock:
                segmented = self._publish(shard, *self._carefully(shard, attempt, report), report)
        else:
            table, quarantine = read_shard(self.archive, shard, self._channels)
            with self.lock:
                begun, lost = self._begin(table, report)
            del table  # the pixels are not needed any more
            masks, no_numbers = _masks(begun)
            segmented = self._publish(
                shard, masks, pa.concat_tables([quarantine, lost, no_numbers]), report
            )
        self.crashes.done(shard.name, segmented)

    @property
    def _channels(self) -> int:
        return self.predictor.card.model.channels

    def _publish(
        self, shard: Shard, masks: pa.Table, quarantine: pa.Table, report: "Report"
    ) -> int:
        """Returns the number of masks."""
        # The masks are what says that the shard is done: they are published last. An earlier attempt may have left a quarantine
        # file; it is replaced or removed before them.
        uri = store.join(self.output, "quarantine", shard.output_file)
        if quarantine.num_rows:
            store.publish_table(uri, quarantine)
        else:
            store.remove(uri)
        store.publish_table(store.join(self.output, "masks", shard.output_file), masks)
        blank = pc.sum(pc.equal(quarantine["stage"], schema.BLANK)).as_py() or 0
        report.done(masks.num_rows + quarantine.num_rows, quarantine.num_rows - blank)
        return int(masks.num_rows)

    def _carefully(
        self, shard: Shard, attempt: Attempt, report: "Report"
    ) -> tuple[pa.Table, pa.Table]:
        """Masks and quarantine of a shard that workers died with: each part is named before it is taken."""
        masks, quarantine = [schema.MASKS.empty_table()], [schema.QUARANTINE.empty_table()]
        groups = range(shard.first_row_group, shard.stop_row_group)
        path = store.join(self.archive, shard.file)
        try:
            slices_of = parquet_recovery.parse(
                path, lambda file: {n: file.metadata.row_group(n).num_rows for n in groups}
            )
        except DamagedFileError as error:
            return masks[0], lost_shard(shard, str(error))
        for group, group_slices in slices_of.items():
            reading = Part(group)
            self.crashes.take(shard.name, reading)
            if why := attempt.given_up(reading):
                # Its ids are read by themselves, and not at all if that kills, too.
                ids = attempt.deaths.count(reading) <= DEATHS
                quarantine.append(unreadable_rows(path, {group: why}, "crash", read_ids=ids))
                continue
            only = replace(
                shard, first_row_group=group, stop_row_group=group + 1, slices=group_slices
            )
            table, unusable = read_shard(self.archive, only, self._channels)
            quarantine.append(unusable)
            for part in attempt.parts(Part(group, 0, table.num_rows)):
                slices = table.slice(part.first, part.stop - part.first)
                if why := attempt.given_up(part):
                    quarantine.append(
                        quarantined(slices, range(len(slices)), "crash", [why] * len(slices))
                    )
                else:
                    self.crashes.take(shard.name, part)
                    begun, lost = self._begin(slices, report)
                    found, no_numbers = _masks(begun)
                    masks.append(found)
                    quarantine += [lost, no_numbers]
        return pa.concat_tables(masks), pa.concat_tables(quarantine)

    def _begin(self, table: pa.Table, report: "Report") -> tuple[list[Begun], pa.Table]:
        """Some slices through the network, and quarantine; the last few predictions may still be under way."""
        begun: list[Begun] = []
        lost = [schema.QUARANTINE.empty_table()]
        batches = deque(self._batches(table))
        while batches:
            rows = batches.popleft()
            try:
                begun.append(self._rows(table, rows))
            except MemoryError as error:
                if len(rows) > 1:
                    batches.extendleft([row] for row in reversed(rows))
                    continue
                lost.append(quarantined(table, rows, "predict", [str(error)]))
            if len(begun) > UNDER_WAY:
                begun[-1 - UNDER_WAY].wait()
            report.more(len(rows))
        return begun, pa.concat_tables(lost)

    def _batches(self, table: pa.Table) -> Iterator[list[int]]:
        """Row numbers of slices of one size, at most a batch of them."""
        shapes = list(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True))
        for _, group in groupby(
            sorted(range(table.num_rows), key=lambda row: shapes[row]), key=lambda row: shapes[row]
        ):
            same = list(group)
            for start in range(0, len(same), self.predictor.batch_size):
                yield same[start : start + self.predictor.batch_size]

    def _rows(self, table: pa.Table, rows: list[int]) -> Begun:
        in_one_piece = rows[-1] - rows[0] + 1 == len(rows)
        pieces = (
            [table.slice(rows[0], len(rows))]
            if in_one_piece
            else [table.slice(row, 1) for row in rows]
        )
        chosen = pa.concat_tables(
            pieces
        )  # table.take would copy all pixels, and fail from 2 GiB on
        height, width = chosen["height"][0].as_py(), chosen["width"][0].as_py()
        pixels_nhwc = images(chosen["pixels"], height, width, self._channels)
        return Begun(chosen.select(_COPIED), self.predictor.begin(pixels_nhwc))


@contextmanager
def report_errors(queue: MessageQueue) -> Iterator[None]:
    """Tell the driver of an error that ends the job: what Ray makes of it names neither its kind nor its message.

    An error of the GPU ends this process alone, as if it had been killed: no later call on that GPU would succeed in it.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        queue.put(GpuFailed(parquet_recovery.one_line(error), socket.gethostname()))
        os._exit(1)
    except Exception as error:
        known = isinstance(error, SegmodelError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        queue.put(WorkerFailed(reason, socket.gethostname()))
        raise


class Report:
    """Tells the driver how much of a shard is done: every `REPORT_S` seconds, and at its end.

    Args:
        queue: to the driver.
        shard: the one that is being segmented.
        clock: seconds, monotonic.
    """

    def __init__(
        self, queue: MessageQueue, shard: Shard, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.queue, self.shard, self.clock = queue, shard, clock
        self.slices, self.reported = 0, clock()

    def more(self, slices: int) -> None:
        """So many more are segmented."""
        self.slices += slices
        if self.clock() - self.reported >= REPORT_S:
            self.done(self.slices, 0)

    def done(self, slices: int, quarantined: int) -> None:
        """So many slices are done in all, those in quarantine among them."""
        self.reported = self.clock()
        self.queue.put(ShardProgress(self.shard.name, slices, quarantined))


def _masks(begun: list[Begun]) -> tuple[pa.Table, pa.Table]:
    """`schema.MASKS`, and quarantine for the slices of which the network says no number; waits for it."""
    masks, lost = [schema.MASKS.empty_table()], [schema.QUARANTINE.empty_table()]
    for part in begun:
        prediction = part.wait()
        is_number_n = np.isfinite(prediction.probability_sum_n)
        rows = _mask_rows(part.slices, prediction)
        wrong = np.flatnonzero(~is_number_n).tolist()
        masks.append(rows.filter(pa.array(is_number_n)) if wrong else rows)
        lost.append(quarantined(part.slices, wrong, "predict", [NO_NUMBER] * len(wrong)))
    return pa.concat_tables(masks), pa.concat_tables(lost)


def _mask_rows(slices: pa.Table, prediction: Prediction) -> pa.Table:
    empty = encode_empty_mask(prediction.bits_nhb.shape[1], prediction.width)
    masks = zip(prediction.bits_nhb, prediction.tumor_pixels_n, strict=True)
    columns = {name: slices[name] for name in _COPIED} | {
        "mask": [
            encode_packed_mask(bits_hb, prediction.width) if pixels else empty
            for bits_hb, pixels in masks
        ],
        "tumor_pixels": prediction.tumor_pixels_n,
        "mean_probability": [
            None if math.isnan(mean) else mean for mean in prediction.mean_probability_n.tolist()
        ],
        "probability_sum": prediction.probability_sum_n,
    }
    return pa.table(
        [_column(columns[field.name], field.type) for field in schema.MASKS], schema=schema.MASKS
    )


def _column(values: Any, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)
