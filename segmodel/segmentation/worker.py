"""The Ray actor that segments shards: it reads a shard, runs the model and publishes the masks."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from segmodel.archive.reader import Shard
from segmodel.core import schema
from segmodel.core.errors import SegmentationError, SegmodelError
from segmodel.inference.precision import Precision
from segmodel.inference.predictor import Predictor
from segmodel.models import checkpoint
from segmodel.models.cpu import set_up_cpu
from segmodel.runs.run_file import Fingerprint
from segmodel.runs.shard_reader import (
    quarantine_rows,
    quarantine_shard,
    read_usable_slices,
    unreadable_rows,
)
from segmodel.runtime.messages import MessageQueue
from segmodel.segmentation.actors import Actors
from segmodel.segmentation.crash_isolation import Attempt, CrashRecord, Step
from segmodel.segmentation.messages import GpuFailed, ShardProgress, WorkerDied, WorkerFailed
from segmodel.segmentation.shard_prediction import begin_batches, collect_masks
from segmodel.storage import parquet_recovery, s3, store
from segmodel.storage.parquet_recovery import DamagedFileError

REPORT_S = 5.0
"""Least time between two messages about a shard: 1,000 workers then send some hundred a second."""


class SegmentShards:
    """Loads the model once, then segments shard after shard.

    Several threads may call it: while one runs the network, others read a shard or write masks. The
    death of a worker costs the inference of the shard in progress, and of the one before if that is
    still being written.

    Args:
        archive, checkpoint_folder, output: URIs.
        fingerprint: of the run, with its precision decided. A model in the folder with other
            weights is an error.
        actors: their device, batch size and CPUs.
        max_starts: workers that may start before a shard is done; one more is an error.
        queue: gets messages about progress, and about workers that died or failed.
        crashes: of this segmentation; it outlives the worker.
    """

    def __init__(
        self,
        archive: str,
        checkpoint_folder: str,
        output: str,
        fingerprint: Fingerprint,
        actors: Actors,
        max_starts: int,
        queue: MessageQueue,
        crashes: CrashRecord,
    ) -> None:
        self.queue, self.threads = queue, actors.cpus
        with report_errors(queue):
            if crashes.start() > max_starts:
                raise SegmentationError(
                    f"{max_starts} workers were started and not one shard was done: they die; the "
                    "memory may be too small for the model, or the GPU broken (see Ray's logs)"
                )
            s3.retry_for_minutes()
            set_up_cpu(self.threads)
            model, card = checkpoint.load(checkpoint_folder)
            if card.weights_sha256 != fingerprint.weights_sha256:
                raise SegmentationError(
                    f"{checkpoint_folder} holds another model than when this run began (a training "
                    "goes on there?): put that model back, or give another --output"
                )
            self.predictor = Predictor(
                model,
                card,
                batch_size=actors.batch_size,
                threshold=fingerprint.threshold,
                device=torch.device("cuda" if actors.use_gpu else "cpu"),
                precision=cast(Precision, fingerprint.precision),
                tta=fingerprint.test_time_augmentation is not None,
                compiled=actors.compiled,
            )
            self.archive, self.output, self.crashes = archive, output, crashes
            self.lock = threading.Lock()

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """Segment one shard: a batch of one row, `shard` as JSON."""
        set_up_cpu(self.threads)  # of this thread
        shard = Shard.from_json(batch["shard"][0])
        with report_errors(self.queue):
            self._segment(shard)
        return {"shard": [shard.name]}

    def _segment(self, shard: Shard) -> None:
        attempt = self.crashes.begin(shard.name)
        if attempt.number > 1:
            self.queue.put(WorkerDied(shard.name, attempt.number))
        report = Report(self.queue, shard)
        if attempt.number > 1 and store.exists(store.join(self.output, "masks", shard.output_file)):
            report.done(shard.slices, 0)  # the worker died after publishing, before saying so
            segmented = shard.slices
        elif attempt.careful:
            with self.lock:
                segmented = self._publish(shard, *self._one_by_one(shard, attempt, report), report)
        else:
            table, quarantine = read_usable_slices(self.archive, shard, self._channels)
            with self.lock:
                begun, lost = begin_batches(self.predictor, table, report.more)
            del table  # frees the pixels
            masks, no_numbers = collect_masks(begun)
            quarantine = pa.concat_tables([quarantine, lost, no_numbers])
            segmented = self._publish(shard, masks, quarantine, report)
        self.crashes.done(shard.name, segmented)

    @property
    def _channels(self) -> int:
        return self.predictor.card.model.channels

    def _publish(
        self, shard: Shard, masks: pa.Table, quarantine: pa.Table, report: "Report"
    ) -> int:
        """Publish a shard; return the number of masks."""
        # The masks file says that the shard is done: it comes last. An earlier attempt may have
        # left a quarantine file, which is replaced or removed first.
        uri = store.join(self.output, "quarantine", shard.output_file)
        if quarantine.num_rows:
            store.publish_table(uri, quarantine)
        else:
            store.remove(uri)
        store.publish_table(store.join(self.output, "masks", shard.output_file), masks)
        blank = pc.sum(pc.equal(quarantine["stage"], schema.BLANK)).as_py() or 0
        report.done(masks.num_rows + quarantine.num_rows, quarantine.num_rows - blank)
        return int(masks.num_rows)

    def _one_by_one(
        self, shard: Shard, attempt: Attempt, report: "Report"
    ) -> tuple[pa.Table, pa.Table]:
        """Masks and quarantine of a shard on which workers died."""
        masks, quarantine = [schema.MASKS.empty_table()], [schema.QUARANTINE.empty_table()]
        groups = range(shard.first_row_group, shard.stop_row_group)
        path = store.join(self.archive, shard.file)
        try:
            slices_of = parquet_recovery.read_footer(
                path, lambda file: {n: file.metadata.row_group(n).num_rows for n in groups}
            )
        except DamagedFileError as error:
            return masks[0], quarantine_shard(shard, str(error))
        for group, slices in slices_of.items():
            if why := attempt.why_given_up(Step(group)):
                # Reading the ids may kill, too: the footer names the patients.
                quarantine.append(unreadable_rows(path, {group: why}, "crash", read_ids=False))
                continue
            self.crashes.take(shard.name, Step(group))
            only = replace(shard, first_row_group=group, stop_row_group=group + 1, slices=slices)
            table, unusable = read_usable_slices(self.archive, only, self._channels)
            quarantine.append(unusable)
            for row in range(table.num_rows):
                one = table.slice(row, 1)
                if why := attempt.why_given_up(Step(group, row)):
                    quarantine.append(quarantine_rows(one, [0], "crash", [why]))
                    continue
                self.crashes.take(shard.name, Step(group, row))
                begun, lost = begin_batches(self.predictor, one, report.more)
                found, no_numbers = collect_masks(begun)
                masks.append(found)
                quarantine += [lost, no_numbers]
        return pa.concat_tables(masks), pa.concat_tables(quarantine)


@contextmanager
def report_errors(queue: MessageQueue) -> Iterator[None]:
    """Tell the driver of an error that ends the job, because Ray hides its kind and message.

    A GPU error ends the process: no later call on that GPU would succeed in it. Ray starts another.
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
        """Count more slices as segmented; report if the last report is old enough."""
        self.slices += slices
        if self.clock() - self.reported >= REPORT_S:
            self.done(self.slices, 0)

    def done(self, slices: int, quarantined: int) -> None:
        """Report the slices done in all, quarantined ones included."""
        self.reported = self.clock()
        self.queue.put(ShardProgress(self.shard.name, slices, quarantined))
