"""Segments an archive on Ray Data: one shard is one unit of work, of commit and of resume.

`masks/<shard>.parquet` is published whole or not at all. A shard whose file is there is done, any
other one is not: there is no other state.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import ray.data
from ray.exceptions import RayError

from segmodel.archive.manifest import read_info
from segmodel.archive.reader import Shard
from segmodel.core.errors import ArchiveError, SegmentationError
from segmodel.core.progress import Progress, say
from segmodel.report import segmentation_page
from segmodel.report.page import REPORT
from segmodel.runs import run_file, run_folder
from segmodel.runs.run_file import Fingerprint, Run
from segmodel.runs.run_folder import Work
from segmodel.runs.throughput import SpeedRecord
from segmodel.runtime import ray_cluster
from segmodel.runtime.messages import MessageQueue, receive_messages
from segmodel.runtime.shared_actor import SharedActor, start_shared_actor
from segmodel.runtime.tracker import Tracker
from segmodel.runtime.tracking import open_tracker
from segmodel.segmentation import precision, preflight, summary
from segmodel.segmentation.actors import Actors
from segmodel.segmentation.console import Console
from segmodel.segmentation.crash_isolation import CrashRecord
from segmodel.segmentation.plan import SegmentationPlan, resolve
from segmodel.segmentation.preflight import Preflight
from segmodel.segmentation.result import SegmentationResult, count_result
from segmodel.segmentation.worker import SegmentShards
from segmodel.settings.segment import SegmentConfig
from segmodel.storage import folder_lock, s3, store
from segmodel.storage.folder_lock import Lease

MAX_DEATHS = 200
"""Of workers in a row before a shard is done. To find a shard's deadly slices takes some tens."""


def segment_archive(config: SegmentConfig) -> SegmentationResult:
    """Segment what is not segmented yet, then write the volumes.

    Raises:
        RequestError: of one kind or another, before a model is loaded.
        LeaseLostError: another job took over the run folder while this one was silent.
    """
    plan = resolve(config)
    with folder_lock.acquire_lock(plan.output) as held:
        # Only now does no other job change what lies in the folder.
        ready = preflight.inspect_folder(plan)
        say(ready.report())
        if _is_finished(ready):
            return _summarize_anew(ready, held)
        s3.retry_for_minutes()
        with ray_cluster.connect(), open_tracker(config, "segment", plan.output) as tracker:
            return _run(ready, tracker, held)


def prepare(config: SegmentConfig) -> Preflight:
    """Check the inputs of a request; nothing is written.

    Nothing is written, no model is loaded, Ray is not started.

    Raises:
        RequestError: of one kind or another.
    """
    return preflight.inspect_folder(resolve(config))


def _is_finished(ready: Preflight) -> bool:
    """Whether nothing is left to segment or to count."""
    if ready.run.finished is None or ready.work.changes_anything:
        return False
    return all(store.exists(store.join(ready.plan.output, name)) for name in run_folder.SUMMARIES)


def _summarize_anew(ready: Preflight, held: Lease) -> SegmentationResult:
    """The result of a finished run; if the postprocessing is another, compute the tables again."""
    plan, run = ready.plan, ready.run
    held.check()
    if run.summary != summary.settings_of(plan.postprocessing):
        summary.summarize_again(
            run, plan.output, plan.card.seen_in_training, plan.postprocessing, plan.archive
        )
    elif run.settings != run_file.read(plan.output).settings:
        run_file.write(plan.output, run)
        segmentation_page.write(plan.output)
    elif not store.exists(store.join(plan.output, REPORT)):
        segmentation_page.write(plan.output)
    return count_result(plan, ready.work, 0.0, run.finished_counts.patients)


def _run(ready: Preflight, tracker: Tracker, held: Lease) -> SegmentationResult:
    """Segment, then compute the volumes; Ray must be connected."""
    plan, work = ready.plan, ready.work
    # Errors of the request come first, before anything in the folder is changed.
    actors = plan.actors.resolve(sum(plan.archive.file_slices().values()))
    run = precision.decide(ready.run, plan.checkpoint_folder, actors)
    run = run_folder.begin(plan.output, run, plan.archive, work)
    tracker.record("fingerprint", run.fingerprint.to_json())
    seconds = _segment(plan, run, actors, work.todo, tracker, held)
    held.check()
    _check_same(plan)
    _check_published(plan.output, work)
    held.check()
    found = summary.write(
        plan.output, plan.card.seen_in_training, plan.postprocessing, plan.archive
    )
    result = count_result(plan, work, seconds, found.num_rows)
    _finish(plan, run, result, tracker, held)
    segmentation_page.write(plan.output)
    _upload(plan.output, tracker)
    return result


def _finish(
    plan: SegmentationPlan, run: Run, result: SegmentationResult, tracker: Tracker, held: Lease
) -> None:
    """Track the results of the run, and write them into run.json."""
    tracker.record("counts", asdict(result.counts))
    speed = run.slices_per_second
    if result.shards_now:
        speed = result.slices_now / result.seconds
        values = {"slices_per_second": speed, "seconds": result.seconds}
        tracker.record("throughput", values)
    held.check()
    run_file.write(
        plan.output,
        replace(
            run,
            counts=result.counts,
            slices_per_second=speed,
            summary=summary.settings_of(plan.postprocessing),
            finished=run_file.now(),
        ),
    )


def _check_same(plan: SegmentationPlan) -> None:
    """Whether the archive is still the one that the run began with."""
    archive = plan.archive
    try:
        found = read_info(archive.uri).archive_id
    except ArchiveError as error:
        found = str(error)
    if found != archive.info.archive_id:
        raise SegmentationError(
            f"{archive.uri} was replaced while it was being segmented "
            f"(its id was {archive.info.archive_id}, now: {found}): "
            f"{plan.output} may hold masks of both; give another --output"
        )


def _check_published(output: str, work: Work) -> None:
    """Whether the masks that workers have published are where the driver looks for them."""
    missing = run_folder.find_unpublished(output, work.plan)
    if missing:
        raise SegmentationError(
            f"{len(missing)} shards were done, but their masks are not in {output}/masks, "
            f"as seen from here (the first: {missing[0].output_file}): do all machines share that "
            "folder? Give the same command again once they do"
        )


def _upload(output: str, tracker: Tracker) -> None:
    for name, extension in (("volumes", "csv"), ("report", "html")):
        content = store.read_bytes(store.join(output, f"{name}.{extension}"))
        tracker.upload(name, content, extension, shows_patients=True)


def _segment(
    plan: SegmentationPlan,
    run: Run,
    actors: Actors,
    todo: Sequence[Shard],
    tracker: Tracker,
    held: Lease,
) -> float:
    """Do the shards; returns the seconds it took."""
    if not todo:
        return 0.0
    slices = sum(shard.slices for shard in todo)
    say(
        f"{slices:,} slices to segment; shards: {len(todo)}, {actors} "
        f"in {run.fingerprint.precision}"
    )
    watch = Console(slices, tracker)
    ray_cluster.configure_ray_data()
    with receive_messages(watch.handle) as queue:
        crashes = start_shared_actor(CrashRecord)  # lives as long as this name
        dataset = _dataset(plan, run.fingerprint, actors, todo, queue, crashes)
        speed = SpeedRecord(plan.output, run)
        started = time.monotonic()
        failed = _wait_for_shards(dataset, watch.progress, speed, held)
        seconds = time.monotonic() - started
    # By now all messages have been handled, that of a worker that failed among them.
    speed.close(watch.progress.done, watch.progress.rate)
    if failed is not None:
        raise SegmentationError(
            f"segmentation failed: {watch.failure or failed}. Finished shards are kept: "
            "give the same command again to continue"
        ) from failed
    say(watch.progress.line())
    return seconds


def _wait_for_shards(
    dataset: ray.data.Dataset, progress: Progress, speed: SpeedRecord, held: Lease
) -> RayError | None:
    """Run the dataset; returns the error that ended it early, if one did."""
    try:
        # Results lie in masks/; a row only says that a shard is there.
        for _ in dataset.iter_rows():
            held.check()
            speed.note(progress.done, progress.rate)
    except RayError as error:
        return error
    return None


def _dataset(
    plan: SegmentationPlan,
    fingerprint: Fingerprint,
    actors: Actors,
    todo: Sequence[Shard],
    queue: MessageQueue,
    crashes: SharedActor,
) -> ray.data.Dataset:
    """The work for Ray Data, one row a shard; nothing runs before its rows are asked for."""
    texts = [{"shard": shard.to_json()} for shard in todo]
    return ray.data.from_items(texts, override_num_blocks=len(texts)).map_batches(
        SegmentShards,
        batch_size=1,
        num_cpus=actors.cpus,
        num_gpus=1 if actors.use_gpu else None,
        runtime_env=None if actors.use_gpu else ray_cluster.KEEP_FREED_MEMORY,
        compute=actors.pool(len(todo)),
        fn_constructor_kwargs={
            "archive": plan.archive.uri,
            "checkpoint_folder": plan.checkpoint_folder,
            "output": plan.output,
            "fingerprint": fingerprint,
            "actors": actors,
            "max_starts": actors.most + MAX_DEATHS,
            "queue": queue,
            "crashes": crashes,
        },
    )
