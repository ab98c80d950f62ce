"""Segments an archive on Ray Data: one shard is one unit of work, of commit and of resume.

`masks/<shard>.parquet` is published whole or not at all. A shard whose file is there is done, any other is
not: there is no other state.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import ray.data

from segmodel import __version__, checkpoint, cluster, storage, volumes
from segmodel.archive import Archive, Shard
from segmodel.checkpoint import ModelCard
from segmodel.config import SegmentConfig, parse_workers
from segmodel.errors import ArchiveError, FingerprintError
from segmodel.progress import Progress
from segmodel.segmenter import SegmentShards
from segmodel.shapes import Postprocessing
from segmodel.tracking import Tracker, open_tracker, settings_of

RUN = "run.json"


@dataclass(frozen=True)
class SegmentationResult:
    """What a run folder holds, and what this call added."""

    output: str
    slices: int
    """Of the archive."""
    segmented: int
    quarantined: int
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
    """
    archive = Archive(config.archive)
    folder = checkpoint.locate(config.checkpoint)
    card = checkpoint.read_card(folder)
    _check_match(archive, card)
    archive.index()  # null or repeated ids
    threshold = card.threshold if config.threshold is None else config.threshold
    postprocessing = _postprocessing(config)
    run = _claim_run(config, fingerprint(archive, card, threshold, config.shard_slices, postprocessing), threshold)

    plan = archive.shards(config.shard_slices)
    done = set(storage.list_files(storage.join(config.output, "masks"), ".parquet"))
    todo = [shard for shard in plan if shard.output_file not in done]
    if not todo and run["finished"] and storage.exists(storage.join(config.output, "volumes.csv")):
        return _result(config, archive, plan, [], 0.0, run["counts"]["patients"])

    with cluster.connect(), open_tracker(config.tracking, "segment", config.output) as tracker:
        tracker.record("parameters", settings_of(config))
        tracker.record("fingerprint", run["fingerprint"])
        seconds = _segment(config, folder, threshold, todo, tracker)
        patients = volumes.summarise(config.output, card.training_patients, postprocessing).num_rows
        result = _result(config, archive, plan, todo, seconds, patients)
        counts = {"slices": result.slices, "segmented": result.segmented, "quarantined": result.quarantined,
                  "patients": result.patients, "shards": result.shards}  # fmt: skip
        tracker.record("counts", counts)
        if todo:
            tracker.record("throughput", {"slices_per_second": result.slices_now / seconds, "seconds": seconds})
        _write_run(config.output, {**run, "counts": counts, "finished": _now()})
    return result


def fingerprint(
    archive: Archive, card: ModelCard, threshold: float, shard_slices: int, postprocessing: Postprocessing | None
) -> dict[str, Any]:
    """All that decides what a mask looks like, which file it is in and what is counted, and the SHA-256 over it."""
    how = {"model": asdict(card.model), "image_size": card.image_size, "mean": card.mean, "std": card.std}
    parts = {
        "weights_sha256": card.weights_sha256,
        "model_settings_sha256": hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest(),
        "threshold": threshold,
        "archive_id": archive.info.archive_id,
        "shard_slices": shard_slices,
        "postprocessing": None if postprocessing is None else asdict(postprocessing),
        "code_version": __version__,
    }
    return {**parts, "sha256": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}


def _postprocessing(config: SegmentConfig) -> Postprocessing | None:
    """What the request wants taken out of the masks, None for nothing."""
    if not config.keep_largest and config.min_volume_ml is None:
        return None
    return Postprocessing(config.keep_largest, config.min_volume_ml)


def _check_match(archive: Archive, card: ModelCard) -> None:
    if len(archive.info.channels) != card.model.channels:
        raise ArchiveError(
            f"{archive.uri} has {len(archive.info.channels)} channels ({', '.join(archive.info.channels)}), the model was "
            f"trained on {card.model.channels} ({', '.join(card.channels)}); take a checkpoint made for such scans"
        )
    if archive.info.channels != card.channels:
        print(f"warning: the archive's channels are {', '.join(archive.info.channels)}; the model was trained on "
              f"{', '.join(card.channels)}", flush=True)  # fmt: skip
    if not archive.info.slices:
        raise ArchiveError(f"{archive.uri} holds no slices")


def _claim_run(config: SegmentConfig, wanted: dict[str, Any], threshold: float) -> dict[str, Any]:
    """run.json of this folder: written now if it is a new one, checked if it is not."""
    path = storage.join(config.output, RUN)
    if storage.exists(path):
        run: dict[str, Any] = json.loads(storage.read_bytes(path))
        found = run["fingerprint"]
        differing = [name for name in wanted if name != "sha256" and found.get(name) != wanted[name]]
        if differing:
            changes = "; ".join(f"{name} was {found.get(name)}, is now {wanted[name]}" for name in differing)
            raise FingerprintError(
                f"{config.output} was begun as run {found['sha256'][:12]}, this request is {wanted['sha256'][:12]}: {changes}. "
                "Give another --output, or the settings of that run"
            )
        return run
    if storage.list_files(storage.join(config.output, "masks"), ".parquet"):
        raise FingerprintError(f"{config.output} holds masks but no {RUN}: what made them is unknown; give another --output")
    settings = {**settings_of(config), "threshold": threshold}
    run = {"fingerprint": wanted, "settings": settings, "counts": None, "started": _now(), "finished": None}
    _write_run(config.output, run)
    return run


def _segment(config: SegmentConfig, folder: str, threshold: float, todo: list[Shard], tracker: Tracker) -> float:
    """Do the shards; returns the seconds it took."""
    if not todo:
        return 0.0
    progress = Progress(sum(shard.slices for shard in todo), "slices")
    quarantined = 0

    def handle(message: cluster.Message) -> None:
        nonlocal quarantined
        quarantined += message["quarantined"]
        progress.advance(message["slices"], f"{quarantined:,} quarantined" if quarantined else "")
        tracker.append("progress/slices_per_second", progress.rate, progress.done)

    cluster.quiet_data()
    with cluster.messages(handle) as queue:
        use_gpu = cluster.want_gpu(config.gpu, config.cpu)
        low, high = parse_workers(config.workers) if config.workers else cluster.default_workers(use_gpu)
        cpus = 1 if use_gpu else cluster.cpus_each(high)
        print(f"{progress.total:,} slices in {len(todo)} shards to segment, {low if low == high else f'{low} to {high}'} "
              f"actors on {'GPUs' if use_gpu else 'CPUs'}", flush=True)  # fmt: skip
        started = time.monotonic()
        dataset = ray.data.from_items([asdict(shard) for shard in todo], override_num_blocks=len(todo)).map_batches(
            SegmentShards,
            batch_size=1,
            num_cpus=cpus,
            num_gpus=1 if use_gpu else 0,
            compute=ray.data.ActorPoolStrategy(min_size=low, max_size=high),
            fn_constructor_kwargs={
                "archive": config.archive, "checkpoint_folder": folder, "output": config.output,
                "batch_size": config.batch_size,
                "threshold": threshold, "use_gpu": use_gpu, "threads": None if use_gpu else cpus, "queue": queue,
            },
        )  # fmt: skip
        for _ in dataset.iter_rows():
            pass  # results lie in masks/; rows only say that a shard is there
        seconds = time.monotonic() - started
    print(progress.line(), flush=True)
    return seconds


def _result(
    config: SegmentConfig, archive: Archive, plan: list[Shard], now: list[Shard], seconds: float, patients: int
) -> SegmentationResult:
    names = set(storage.list_files(storage.join(config.output, "quarantine"), ".parquet"))
    quarantined = 0
    for shard in plan:
        if shard.output_file in names:
            with storage.open_parquet(storage.join(config.output, "quarantine", shard.output_file)) as file:
                quarantined += file.metadata.num_rows
    slices = archive.info.slices
    return SegmentationResult(
        output=config.output,
        slices=slices,
        segmented=slices - quarantined,
        quarantined=quarantined,
        patients=patients,
        shards=len(plan),
        shards_now=len(now),
        slices_now=sum(shard.slices for shard in now),
        seconds=seconds,
        too_many_quarantined=quarantined > config.max_quarantined * slices,
    )


def _write_run(output: str, run: dict[str, Any]) -> None:
    storage.publish_json(storage.join(output, RUN), run)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
