"""Data-parallel training, and the learning-rate range test, on Ray Train: one fastai Learner in each worker."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from segmodel.archive.annotations import SliceRows, find_annotated
from segmodel.archive.reader import Archive
from segmodel.core.dice import EpochResult, best_epoch
from segmodel.core.errors import ConfigError, RequestError, TrainingError
from segmodel.data.splits import Split, split_patients
from segmodel.runtime import ray_cluster
from segmodel.runtime.tracking import Tracker, open_tracker, settings_of
from segmodel.settings.jobs import parse_workers
from segmodel.settings.training import FindLrConfig, RecipeConfig, TrainConfig
from segmodel.storage import folder_lock, s3, store
from segmodel.storage.folder_lock import Lease
from segmodel.training.console import Listener, TrainingListener
from segmodel.training.worker_group import TRAINER, run_workers

SETTINGS, SPLIT = "train.json", "split.json"
MANIFEST = "model.json"
"""Of a checkpoint; `checkpoint` itself takes seconds to import."""
RESULTS = (
    "history.csv",
    "steps.csv",
    "patients.csv",
    SPLIT,
    "lr_find.csv",
    "figures",
    "best",
    "last",
)
MAY_CHANGE = (
    "tracking",
    "data",
    "workers",
    "gpu",
    "cpu",
    "overwrite",
    "resume",
    "max_failures",
    "memory_format",
    "compile",
)
"""Settings that may be others when a training goes on: where and how it runs, not what it comes to."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to."""

    output: str
    history: tuple[EpochResult, ...]
    peak_memory_mb: float
    """Of the first worker: of its GPU, or of its process."""

    @property
    def best(self) -> EpochResult:
        """The epoch whose weights are in best/."""
        return best_epoch(self.history)


def train(config: TrainConfig) -> TrainingResult:
    """Train as `config` says.

    Raises:
        RequestError: of one kind or another, before anything is trained.
        TrainingError: the training broke off.
    """
    archive = Archive(config.archive)
    rows, split = _plan(archive, config)
    _find_run(config, archive)
    with ray_cluster.connect():
        # Or an error, before anything in the folder is replaced.
        ray_cluster.want_gpu(config.gpu, config.cpu, parse_workers(config.workers)[0])
        with folder_lock.hold(config.output) as held:
            # Once more, now that no other training works in the folder: one may have done so since.
            run_id = _find_run(config, archive) or _claim(config, archive)
            with open_tracker(
                config.tracking, "train", config.output, tags=_tags(config), run_id=run_id
            ) as tracker:
                return _train_held(config, archive, rows, split, tracker, held)


def _train_held(
    config: TrainConfig,
    archive: Archive,
    rows: SliceRows,
    split: Split,
    tracker: Tracker,
    held: Lease,
) -> TrainingResult:
    _begin(config, archive, split, tracker)
    listener = TrainingListener(tracker)
    try:
        run_workers(config, rows, split, listener, config.max_failures)
    except RequestError:
        if not store.exists(store.join(config.output, "last", TRAINER)):
            store.remove(
                store.join(config.output, SETTINGS)
            )  # the request may come again, corrected
        raise
    held.check()
    result = TrainingResult(config.output, tuple(listener.history), listener.peak_memory_mb)
    best = result.best
    values = {
        "best_epoch": best.epoch,
        "best_dice": best.dice,
        "best_patient_dice": best.patient_dice,
        "best_tumor_patient_dice": best.tumor_patient_dice,
        "peak_memory_mb": result.peak_memory_mb,
    }
    tracker.record("result", {name: value for name, value in values.items() if value is not None})
    _upload_figures(config, tracker)
    return result


def find_lr(config: FindLrConfig) -> float:
    """Run the learning-rate range test as `config` says; returns its suggestion.

    Raises:
        RequestError: of one kind or another, before anything is trained.
        TrainingError: the test broke off, or suggests nothing.
    """
    archive = Archive(config.archive)
    rows, split = _plan(archive, config)
    if store.exists(store.join(config.output, "lr_find.csv")) and not config.overwrite:
        raise ConfigError(
            f"{config.output} already holds a range test; give --overwrite to replace it, or another --output"
        )
    if store.exists(store.join(config.output, SETTINGS)):
        raise ConfigError(
            f"{config.output} holds a training, whose split this would replace; give another --output"
        )
    tracked = open_tracker(config.tracking, "find_lr", config.output, tags=_tags(config))
    with tracked as tracker, ray_cluster.connect():
        _begin(config, archive, split, tracker)
        listener = Listener(tracker)
        run_workers(config, rows, split, listener, max_failures=0)
        _upload_figures(config, tracker)
    if listener.suggestion is None:
        raise TrainingError("the range test ended without a suggestion")
    return listener.suggestion


def _plan(archive: Archive, config: RecipeConfig) -> tuple[SliceRows, Split]:
    """Where the annotated slices are and on which side; everything about them that can be wrong is found here."""
    rows = find_annotated(archive, config.mixed_sizes)
    counts = rows.counts()
    split = _split(config, counts)
    slices = sum(counts[patient] for patient in split.train)
    if slices < config.batch_size:
        raise ConfigError(
            f"--batch-size {config.batch_size}: there are only {slices} slices to train on; give a smaller one"
        )
    valid, workers = (
        sum(counts[patient] for patient in split.valid),
        parse_workers(config.workers)[1],
    )
    if valid < workers:
        raise ConfigError(
            f"--workers {config.workers}: there are only {valid} slices to validate on; give fewer workers"
        )
    if config.arch == "dynamic" and config.encoder_weights != "none":
        _check_encoder_weights(config)
    return rows, split


def _split(config: RecipeConfig, counts: Mapping[str, int]) -> Split:
    """The patients of either side; a training that goes on keeps its own, whatever the archive has got since."""
    path = store.join(config.output, SPLIT)
    if not (isinstance(config, TrainConfig) and config.resume and store.exists(path)):
        return split_patients(counts, config.seed)
    stored = _read_json(path, "train", "valid")
    split = Split(tuple(stored["train"]), tuple(stored["valid"]))
    patients = {*split.train, *split.valid}
    if gone := patients - set(counts):
        raise ConfigError(
            f"--resume: {config.archive} has no masks any more of {', '.join(sorted(gone)[:3])}; train anew"
        )
    if new := len(set(counts) - patients):
        print(
            f"{new} patients came into the archive since this training began: it goes on without them",
            flush=True,
        )
    return split


def _read_json(path: str, *keys: str) -> dict[str, Any]:
    try:
        values = json.loads(store.read_bytes(path))
        return {**values, **{key: values[key] for key in keys}}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--resume: {path} is damaged ({type(error).__name__}: {error}); train anew with --overwrite"
        ) from error


def _settings(config: TrainConfig, archive: Archive) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE}
    return dict(json.loads(json.dumps(settings | {"archive_id": archive.info.archive_id})))


def _find_run(config: TrainConfig, archive: Archive) -> str | None:
    """The id of the tracked run of the training to go on with; None for a new one, which may have the folder."""
    path = store.join(config.output, SETTINGS)
    there = store.exists(path)
    if config.resume:
        if not there:
            raise ConfigError(
                f"--resume: {config.output} holds no training; leave --resume out to begin one"
            )
        stored = _read_json(path, "run_id")
        run_id = str(stored.pop("run_id"))
        settings = _settings(config, archive).items()
        changed = [
            f"{key} was {stored.get(key)!r}, is {value!r}"
            for key, value in settings
            if stored.get(key) != value
        ]
        if changed:
            raise ConfigError(
                f"--resume: {config.output} was begun with other settings: {'; '.join(changed)}"
            )
        return run_id
    if there and not config.overwrite:
        raise ConfigError(
            f"{config.output} already holds a training; give --resume to go on with it, --overwrite to replace it, "
            "or another --output"
        )
    models = [
        name for name in ("best", "last") if store.exists(store.join(config.output, name, MANIFEST))
    ]
    if models and not config.overwrite:
        folder = store.join(config.output, models[0])
        raise ConfigError(
            f"{folder} already holds a model; give --overwrite to replace it, or another --output"
        )
    return None


def _claim(config: TrainConfig, archive: Archive) -> str:
    """Take the output folder for a new training; returns the id of its tracked run."""
    for name in RESULTS if config.overwrite else ():
        store.remove(store.join(config.output, name))
    run_id = uuid.uuid4().hex
    store.publish_json(
        store.join(config.output, SETTINGS), _settings(config, archive) | {"run_id": run_id}
    )
    return run_id


def _check_encoder_weights(config: RecipeConfig) -> None:
    """Fail here, in seconds, and not in every worker."""
    from segmodel.models.dynamic_unet import load_encoder
    from segmodel.models.registry import ModelSettings, build_model

    model = build_model(ModelSettings(arch="dynamic", channels=3, encoder=config.encoder))
    load_encoder(model, config.encoder, config.encoder_weights)


def _tags(config: RecipeConfig) -> list[str]:
    return [config.arch, config.encoder] if config.arch == "dynamic" else [config.arch]


def _begin(config: RecipeConfig, archive: Archive, split: Split, tracker: Tracker) -> None:
    s3.be_patient()
    store.publish_json(store.join(config.output, SPLIT), asdict(split))
    tracker.record("parameters", settings_of(config))
    tracker.record("archive", {"id": archive.info.archive_id, "slices": archive.info.slices})
    tracker.record(
        "data", {"training_patients": len(split.train), "validation_patients": len(split.valid)}
    )


def _upload_figures(config: RecipeConfig, tracker: Tracker) -> None:
    folder = store.join(config.output, "figures")
    for name in store.list_files(folder, ".png"):
        tracker.upload(
            f"figures/{name.removesuffix('.png')}",
            store.read_bytes(store.join(folder, name)),
            "png",
        )
