"""Segments an archive on Ray Data: one shard is one unit of work, of commit and of resume.

`masks/<shard>.parquet` is published whole or not at all. A shard whose file is there is done, any other is
not: there is no other state.
"""

import time
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from segmodel.archive.manifest import read_info
from segmodel.archive.reader import Archive, Shard
from segmodel.core import schema
from segmodel.core.errors import ArchiveError, SegmentationError
from segmodel.core.progress import say
from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard
from segmodel.report import segmentation_page
from segmodel.report.page import REPORT
from segmodel.runs import run_file, run_folder
from segmodel.runs.run_file import Counts, Run
from segmodel.runs.run_folder import Work
from segmodel.runs.throughput import SpeedRecord
from segmodel.runtime import ray_cluster
from segmodel.runtime.messages import MessageQueue, receive_messages
from segmodel.runtime.shared_actor import SharedActor, start_shared_actor
from segmodel.runtime.tracker import Tracker
from segmodel.runtime.tracking import open_tracker, settings_of
from segmodel.segmentation import fingerprint, precision, preflight, summary
from segmodel.segmentation.console import Console
from segmodel.segmentation.crash_isolation import CrashRecord
from segmodel.segmentation.preflight import Preflight
from segmodel.segmentation.worker import SegmentShards
from segmodel.settings.base import parse_workers
from segmodel.settings.segment import SegmentConfig
from segmodel.storage import folder_lock, s3, store
from segmodel.storage.folder_lock import Lease

CPU_BATCH, GPU_BATCH = 32, 128
COMPILED_FROM = 20_000
"""Slices from which on a GPU makes up for the half minute that torch.compile takes."""
MAX_DEATHS = 200
"""Of workers in a row before a shard is done. The search for a shard's deadly slices takes some tens."""


@dataclass(frozen=True)
class SegmentationResult:
    """What a run folder holds, and what this call added."""

    output: str
    slices: int
    """Of the archive."""
    segmented: int
    quarantined: int
    """Slices that could not be segmented."""
    blank: int
    """Slices without any structure, which nothing was to be segmented in."""
    patients: int
    shards: int
    shards_now: int
    """Shards that this call did; the others were done before."""
    slices_now: int
    seconds: float
    """Of this call's inference, from the first request to Ray to the last published shard."""
    too_many_quarantined: bool

    @property
    def exit_code(self) -> int:
        """0, or 3 when more slices ended in quarantine than was allowed."""
        return 3 if self.too_many_quarantined else 0


def segment_archive(config: SegmentConfig) -> SegmentationResult:
    """Segment what is not segmented yet, then write the volumes.

    Raises:
        RequestError: of one kind or another, before a model is loaded.
        LeaseLostError: another job took over the run folder while this one was silent.
    """
    ready = prepare(config)
    say(ready.report())
    with folder_lock.acquire_lock(config.output) as held:
        return _segment_held(config, ready, held)


def prepare(config: SegmentConfig) -> Preflight:
    """Look at all that the request names; nothing is written, no model is loaded, Ray is not started.

    Raises:
        RequestError: of one kind or another.
    """
    archive = Archive(config.archive, skip_damaged=True)
    card = checkpoint.read_card(checkpoint.find_checkpoint(config.checkpoint))
    preflight.check_match(archive, card)
    checkpoint.read_weights(checkpoint.find_checkpoint(config.checkpoint), card)
    run = _claim(config, archive, card)
    work = run_folder.find_work(config.output, archive, config.shard_slices, config.retry_failed)
    return preflight.inspect_request(archive, card, config.output, run, work)


def _claim(config: SegmentConfig, archive: Archive, card: ModelCard) -> Run:
    wanted = fingerprint.fingerprint(config, archive, card)
    settings = {**settings_of(config), "threshold": wanted.threshold}
    return run_folder.claim(config.output, wanted, archive, settings)


def _segment_held(config: SegmentConfig, ready: Preflight, held: Lease) -> SegmentationResult:
    archive, card = ready.archive, ready.card
    # Once more, now that no other job works in the folder: one may have done so since the preflight.
    run = _claim(config, archive, card)
    work = run_folder.find_work(config.output, archive, config.shard_slices, config.retry_failed)
    finished = run.finished and store.exists(store.join(config.output, "volumes.csv"))
    how = summary.postprocessing(config)
    if finished and not (work.todo or work.newly_lost or work.reopened):
        held.check()
        if run.summary != summary.settings_of(how):
            summary.remake(run, config.output, card.seen_in_training, how, archive)
        elif not store.exists(store.join(config.output, REPORT)):
            segmentation_page.write(config.output)
        return _result(config, archive, work, 0.0, run.finished_counts.patients)

    s3.retry_for_minutes()
    with ray_cluster.connect(), open_tracker(config, "segment", config.output) as tracker:
        # Or an error, before anything in the folder is changed.
        use_gpu = ray_cluster.should_use_gpu(config.gpu, config.cpu, _fewest(config))
        folder, most = checkpoint.find_checkpoint(config.checkpoint), _workers(config, use_gpu)[1]
        run = precision.decide(run, folder, use_gpu, most)
        run = run_folder.begin(config.output, run, archive, work)
        tracker.record("fingerprint", run.fingerprint.to_json())
        seconds = _segment(config, run, work.todo, tracker, held)
        held.check()
        _check_same(config, archive)
        _check_published(config, archive)
        found = _summarize(config, archive, card, held)
        result = _result(config, archive, work, seconds, found.num_rows)
        counts = Counts(
            slices=result.slices,
            segmented=result.segmented,
            quarantined=result.quarantined,
            blank=result.blank,
            patients=result.patients,
            shards=result.shards,
        )
        tracker.record("counts", asdict(counts))
        speed = run.slices_per_second
        if work.todo:
            speed = result.slices_now / seconds
            tracker.record("throughput", {"slices_per_second": speed, "seconds": seconds})
        held.check()
        run_file.write(
            config.output,
            replace(
                run,
                counts=counts,
                slices_per_second=speed,
                summary=summary.settings_of(how),
                finished=run_file.now(),
            ),
        )
        segmentation_page.write(config.output)
        _upload(config.output, tracker)
    return result


def _summarize(config: SegmentConfig, archive: Archive, card: ModelCard, held: Lease) -> pa.Table:
    held.check()
    how = summary.postprocessing(config)
    return summary.write(config.output, card.seen_in_training, how, archive)


def _check_same(config: SegmentConfig, archive: Archive) -> None:
    """Whether the archive is still the one that the run began with."""
    try:
        found = read_info(archive.uri).archive_id
    except ArchiveError as error:
        found = str(error)
    if found != archive.info.archive_id:
        raise SegmentationError(
            f"{archive.uri} was replaced while it was being segmented (its id was {archive.info.archive_id}, now: {found}): "
            f"{config.output} may hold masks of both; give another --output"
        )


def _check_published(config: SegmentConfig, archive: Archive) -> None:
    """Whether the masks that workers have published are where the driver looks for them."""
    missing = run_folder.find_work(
        config.output, archive, config.shard_slices, retry_failed=False
    ).todo
    if missing:
        raise SegmentationError(
            f"{len(missing)} shards were done, but their masks are not in {config.output}/masks, as seen from here (the first: "
            f"{missing[0].output_file}): do all machines share that folder? Give the same command again once they do"
        )


def _upload(output: str, tracker: Tracker) -> None:
    for name, extension in (("volumes", "csv"), ("report", "html")):
        content = store.read_bytes(store.join(output, f"{name}.{extension}"))
        tracker.upload(name, content, extension, shows_patients=True)


def _segment(
    config: SegmentConfig, run: Run, todo: list[Shard], tracker: Tracker, held: Lease
) -> float:
    """Do the shards; returns the seconds it took."""
    if not todo:
        return 0.0
    watch = Console(sum(shard.slices for shard in todo), tracker)
    progress = watch.progress
    ray_cluster.configure_ray_data()
    with receive_messages(watch.handle) as queue:
        crashes = start_shared_actor(CrashRecord)  # lives as long as this name
        dataset = _plan(config, run, todo, queue, crashes)
        started = time.monotonic()
        speed = SpeedRecord(config.output, run)
        failed = None
        try:
            # Results lie in masks/; a row only says that a shard is there.
            for _ in dataset.iter_rows():
                held.check()
                speed.note(progress.done, progress.rate)
        except RayError as error:
            failed = error
        seconds = time.monotonic() - started
    # By now all messages have been handled, that of a worker that failed among them.
    speed.close(progress.done, progress.rate)
    if failed is not None:
        raise SegmentationError(
            f"segmentation broke off: {watch.failure or failed}; what is done is kept: give the same command again to go on"
        ) from failed
    say(progress.line())
    return seconds


def _plan(
    config: SegmentConfig, run: Run, todo: list[Shard], queue: MessageQueue, crashes: SharedActor
) -> ray.data.Dataset:
    """The work for Ray Data, one row a shard; nothing runs before its rows are asked for."""
    use_gpu = ray_cluster.should_use_gpu(config.gpu, config.cpu, _fewest(config))
    low, high = _workers(config, use_gpu)
    # Ray Data warns of actors that ask for CPUs and a GPU.
    cpus = None if use_gpu else ray_cluster.cpus_per_worker(high)
    taken = run.fingerprint
    actors, device = low if low == high else f"{low} to {high}", "GPUs" if use_gpu else "CPUs"
    say(
        f"{sum(shard.slices for shard in todo):,} slices to segment; shards: {len(todo)}, "
        f"actors: {actors}, on {device} in {taken.precision}"
    )
    return ray.data.from_items(
        [{"shard": shard.to_json()} for shard in todo], override_num_blocks=len(todo)
    ).map_batches(
        SegmentShards,
        batch_size=1,
        num_cpus=cpus,
        num_gpus=1 if use_gpu else None,
        runtime_env=None if use_gpu else ray_cluster.KEEP_FREED_MEMORY,
        compute=_actors(low, high, len(todo), use_gpu),
        fn_constructor_kwargs={
            "archive": config.archive,
            "checkpoint_folder": checkpoint.find_checkpoint(config.checkpoint),
            "output": config.output,
            "weights_sha256": taken.weights_sha256,
            "batch_size": config.batch_size or (GPU_BATCH if use_gpu else CPU_BATCH),
            "compiled": _compiled(config, run, use_gpu),
            "threshold": taken.threshold,
            "precision": taken.precision,
            "tta": config.tta,
            "use_gpu": use_gpu,
            "threads": cpus,
            "max_starts": high + MAX_DEATHS,
            "queue": queue,
            "crashes": crashes,
        },
    )


def _actors(low: int, high: int, shards: int, use_gpu: bool) -> ActorPoolStrategy:
    # One shard goes through the network while others are read or written, and one or two wait, so
    # that no thread does; of a few shards, though, no actor takes more than its share.
    share = -(-shards // high)
    threads, in_flight = (min(number, share) for number in ((4, 6) if use_gpu else (3, 4)))
    return ActorPoolStrategy(
        min_size=low,
        max_size=high,
        max_tasks_in_flight_per_actor=in_flight,
        max_concurrent_calls_per_actor=threads,
        enable_true_multi_threading=True,
    )


def _compiled(config: SegmentConfig, run: Run, use_gpu: bool) -> bool:
    if config.compile != "auto":
        return config.compile == "on"
    # Of the whole archive: a run that goes on does as it did before.
    return use_gpu and sum(file.slices for file in run.files.values()) >= COMPILED_FROM


def _workers(config: SegmentConfig, use_gpu: bool) -> tuple[int, int]:
    """The fewest and the most."""
    return parse_workers(config.workers) if config.workers else ray_cluster.default_workers(use_gpu)


def _fewest(config: SegmentConfig) -> int:
    return parse_workers(config.workers)[0] if config.workers else 1


def _result(
    config: SegmentConfig, archive: Archive, work: Work, seconds: float, patients: int
) -> SegmentationResult:
    stages = run_folder.count_quarantined(config.output, archive, work.plan)
    blank = stages.pop(schema.BLANK, 0)
    quarantined = sum(stages.values())
    slices = archive.info.slices
    return SegmentationResult(
        output=config.output,
        slices=slices,
        segmented=slices - quarantined - blank,
        quarantined=quarantined,
        blank=blank,
        patients=patients,
        shards=len(work.plan),
        shards_now=len(work.todo),
        slices_now=sum(shard.slices for shard in work.todo),
        seconds=seconds,
        too_many_quarantined=quarantined > config.max_quarantined * slices,
    )
