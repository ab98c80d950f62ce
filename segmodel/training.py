"""Data-parallel training on Ray Train: one fastai Learner in each worker."""

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue

from segmodel import cluster, storage
from segmodel.archive import Archive
from segmodel.config import TrainConfig
from segmodel.errors import ArchiveError, ConfigError, SegmodelError, TrainingError
from segmodel.metrics import EpochResult
from segmodel.progress import Progress, duration
from segmodel.splits import Split, split_patients
from segmodel.tracking import Tracker, open_tracker, settings_of

RAY_FOLDER = ".ray"
"""Ray Train's own state while it runs, in the output folder."""
WORKER_START_SECONDS = 600
"""Ray Train gives up on workers that have not started after this; its own minute is short where many import torch at once."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to."""

    output: str
    history: tuple[EpochResult, ...]

    @property
    def best(self) -> EpochResult:
        """The epoch with the highest Dice; its weights are in best/."""
        return max(self.history, key=lambda result: result.dice)


def train(config: TrainConfig) -> TrainingResult:
    """Train as `config` says.

    Raises:
        RequestError: of one kind or another, before anything is trained.
        TrainingError: the training broke off.
    """
    archive = Archive(config.archive)
    split = _plan_split(archive, config)
    _claim_output(config)
    if config.arch == "dynamic" and config.encoder_weights != "none":
        _check_encoder_weights(config)
    with open_tracker(config.tracking, "train", config.output) as tracker, cluster.connect():
        use_gpu = cluster.want_gpu(config.gpu, config.cpu)
        tracker.record("parameters", settings_of(config))
        tracker.record("archive", {"id": archive.info.archive_id, "slices": archive.info.slices})
        storage.publish(storage.join(config.output, "split.json"), (json.dumps(asdict(split), indent=2) + "\n").encode())
        print(f"{len(split.train)} patients train, {len(split.valid)} validate; {config.workers} workers on "
              f"{'GPUs' if use_gpu else 'CPUs'}, "
              f"{config.batch_size // config.workers} slices a step each", flush=True)  # fmt: skip
        listener = _Listener(config, tracker)
        with cluster.messages(listener.handle) as queue:
            _fit(config, split, use_gpu, queue)
        result = TrainingResult(config.output, tuple(listener.history))
        tracker.record("result", {"best_epoch": result.best.epoch, "best_dice": result.best.dice,
                                  "weights_sha256": listener.best_sha256})  # fmt: skip
    return result


def _plan_split(archive: Archive, config: TrainConfig) -> Split:
    annotated = [
        table.filter(pc.is_valid(table["mask"])).column("patient_id")
        for table in (archive.read_columns(["patient_id", "mask"]))
    ]
    counts: dict[str, int] = {}
    for column in annotated:
        for entry in pc.value_counts(column).to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    if not counts:
        raise ArchiveError(f"{archive.uri}: no slice has a mask; training needs annotated patients")
    split = split_patients(counts, config.seed)
    slices = sum(counts[patient] for patient in split.train)
    if slices < config.batch_size:
        raise ConfigError(f"--batch-size {config.batch_size}: there are only {slices} slices to train on; give a smaller one")
    valid = sum(counts[patient] for patient in split.valid)
    if valid < config.workers:
        raise ConfigError(f"--workers {config.workers}: there are only {valid} slices to validate on; give fewer workers")
    return split


def _claim_output(config: TrainConfig) -> None:
    if storage.exists(storage.join(config.output, "history.csv")):
        if not config.overwrite:
            raise ConfigError(f"{config.output} already holds a training; give --overwrite to replace it, or another --output")
        for name in ("history.csv", "split.json", "best", "last"):
            storage.remove(storage.join(config.output, name))


def _check_encoder_weights(config: TrainConfig) -> None:
    """Fail here, in seconds, and not in every worker."""
    from segmodel.models import ModelSettings, build_model, load_encoder

    model = build_model(ModelSettings(arch="dynamic", channels=3, encoder=config.encoder))
    load_encoder(model, config.encoder, config.encoder_weights)


def _fit(config: TrainConfig, split: Split, use_gpu: bool, queue: Queue) -> None:
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(WORKER_START_SECONDS))
    fs, path = storage.filesystem(config.output)
    cpus = 1 if use_gpu else cluster.cpus_each(config.workers)
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={"config": config, "split": split, "queue": queue, "threads": None if use_gpu else cpus},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus} | ({"GPU": 1} if use_gpu else {}),
        ),
        # Ray Train wants a place that all nodes reach: the output folder, through the file system that everything else uses.
        run_config=RunConfig(
            name=f"train-{int(time.time())}",
            storage_path=storage.join(path, RAY_FOLDER),
            storage_filesystem=pa.fs.PyFileSystem(pa.fs.FSSpecHandler(fs)),
            logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]  # mypy sees the former RunConfig
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        last = storage.join(config.output, "last")
        kept = f"{last} holds the last whole epoch" if storage.exists(last) else "no epoch was finished"
        raise _made_for_users(error) or TrainingError(f"training broke off ({kept}): {error}") from error
    finally:
        storage.remove(storage.join(config.output, RAY_FOLDER))


def _made_for_users(error: TrainingFailedError) -> SegmodelError | None:
    """The error of this package that made a worker fail, if it was one."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause: BaseException | None = failure
        while cause is not None and not isinstance(cause, SegmodelError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            return cause
    return None


class _Listener:
    """The driver's side: prints, tracks and remembers what the first worker reports."""

    def __init__(self, config: TrainConfig, tracker: Tracker) -> None:
        self.config, self.tracker = config, tracker
        self.history: list[EpochResult] = []
        self.best_sha256 = ""
        self.progress: Progress | None = None
        self.steps_done = 0

    def handle(self, message: cluster.Message) -> None:
        """One message of the first worker."""
        if message["kind"] == "start":
            self.progress = Progress(message["steps"], "steps")
            print(f"{message['train_slices']} slices to train on, {message['valid_slices']} to validate on, "
                  f"{message['parameters'] / 1e6:.1f} million parameters", flush=True)  # fmt: skip
            print("epoch  train loss  valid loss    Dice    time", flush=True)
            self.tracker.record("model", {"parameters": message["parameters"]})
        elif message["kind"] == "step" and self.progress is not None:
            self.progress.advance(message["step"] - self.steps_done, f"loss {message['loss']:.3f}")
            self.steps_done = message["step"]
            self.tracker.append("train/step_loss", message["loss"], message["step"])
        elif message["kind"] == "epoch":
            result = EpochResult(**message["result"])
            self.history.append(result)
            print(f"{result.epoch:5d}  {result.train_loss:10.4f}  {result.valid_loss:10.4f}  {result.dice:6.4f}  "
                  f"{duration(result.seconds):>6}", flush=True)  # fmt: skip
            for name in ("train_loss", "valid_loss", "dice", "seconds"):
                self.tracker.append(f"train/{name}", getattr(result, name), result.epoch)
            if message["best_sha256"]:
                self.best_sha256 = message["best_sha256"]


def _train_loop(settings: dict[str, Any]) -> None:
    # Only the workers import torch and fastai: the driver and Ray's own actors start in a fraction of the time.
    from segmodel.trainloop import run_worker

    run_worker(**settings)
