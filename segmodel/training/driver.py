"""Trains, or runs a learning-rate range test, on Ray Train: one fastai Learner per worker."""

from dataclasses import asdict, dataclass

from segmodel.archive.annotations import SliceRows, find_annotated
from segmodel.archive.reader import Archive
from segmodel.core.dice import EpochResult, best_epoch
from segmodel.core.errors import ConfigError, RequestError, TrainingError
from segmodel.data.splits import Split
from segmodel.report import training_page
from segmodel.report.page import REPORT
from segmodel.runtime import ray_cluster
from segmodel.runtime.tracker import Tracker
from segmodel.runtime.tracking import open_tracker
from segmodel.settings.base import parse_workers
from segmodel.settings.training import FindLrConfig, RecipeConfig, TrainConfig
from segmodel.storage import folder_lock, s3, store
from segmodel.storage.folder_lock import Lease
from segmodel.training import output
from segmodel.training.console import Listener, TrainingListener
from segmodel.training.worker_group import run_workers


@dataclass(frozen=True)
class TrainingResult:
    """The results of a training."""

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
        RequestError: a request that cannot work, before anything is trained.
        TrainingError: the training broke off.
        LeaseLostError: another job took over the output folder while this one was silent.
        DiskFullError: no space is left in the output folder.
    """
    archive = Archive(config.archive)
    rows, split = _plan(archive, config)
    output.find_training(config, archive)
    with ray_cluster.connect():
        # Raises before anything in the folder is replaced.
        ray_cluster.should_use_gpu(config.gpu, config.cpu, parse_workers(config.workers)[0])
        with output.explain_full_disk(config), folder_lock.acquire_lock(config.output) as lease:
            # Again, because another training may have used the folder before this one locked it.
            run_id = output.find_training(config, archive)
            run_id = run_id or output.claim_training(config, archive)
            with open_tracker(
                config, "train", config.output, tags=_tags(config), run_id=run_id
            ) as tracker:
                return _train_locked(config, archive, rows, split, tracker, lease)


def _train_locked(
    config: TrainConfig,
    archive: Archive,
    rows: SliceRows,
    split: Split,
    tracker: Tracker,
    lease: Lease,
) -> TrainingResult:
    _begin(config, archive, split, tracker)
    listener = TrainingListener(tracker)
    try:
        run_workers(config, rows, split, listener, config.max_failures, lease.for_workers())
    except RequestError:
        lease.check()
        if not output.has_finished_epochs(config):  # the request may come again, corrected
            output.release_training(config)
        raise
    lease.check()
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
    _write_page(config, tracker)
    _upload_figures(config, tracker)
    return result


def find_lr(config: FindLrConfig) -> float:
    """Run the learning-rate range test as `config` says; returns its suggestion.

    Raises:
        RequestError: a request that cannot work, before anything is trained.
        TrainingError: the test broke off, or suggests nothing.
        LeaseLostError: another job took over the output folder while this one was silent.
        DiskFullError: no space is left in the output folder.
    """
    archive = Archive(config.archive)
    rows, split = _plan(archive, config)
    output.check_range_test(config)
    with (
        ray_cluster.connect(),
        output.explain_full_disk(config),
        folder_lock.acquire_lock(config.output) as lease,
        open_tracker(config, "find_lr", config.output, tags=_tags(config)) as tracker,
    ):
        # Again, because another job may have used the folder before this one locked it.
        output.check_range_test(config)
        ray_cluster.should_use_gpu(config.gpu, config.cpu, parse_workers(config.workers)[0])
        output.claim_range_test(config)
        return _find_lr_locked(config, archive, rows, split, tracker, lease)


def _find_lr_locked(
    config: FindLrConfig,
    archive: Archive,
    rows: SliceRows,
    split: Split,
    tracker: Tracker,
    lease: Lease,
) -> float:
    _begin(config, archive, split, tracker)
    listener = Listener(tracker)
    try:
        run_workers(config, rows, split, listener, 0, lease.for_workers())
    except RequestError:
        lease.check()
        output.RANGE_TEST.remove_run(config.output)  # the request may come again, corrected
        raise
    lease.check()
    if store.exists(store.join(config.output, "lr_find.csv")):
        _write_page(config, tracker)
    _upload_figures(config, tracker)
    if listener.suggestion is None:
        raise TrainingError("the range test ended without a suggestion")
    return listener.suggestion


def _plan(archive: Archive, config: RecipeConfig) -> tuple[SliceRows, Split]:
    """Find the annotated slices and split the patients; refuse what cannot be trained on."""
    rows = find_annotated(archive, config.mixed_sizes)
    counts = rows.counts()
    split = output.load_or_make_split(config, counts)
    slices = sum(counts[patient] for patient in split.train)
    if slices < config.batch_size:
        raise ConfigError(
            f"--batch-size {config.batch_size}: there are only {slices} slices to train on; give a "
            "smaller one"
        )
    valid = sum(counts[patient] for patient in split.valid)
    if valid < parse_workers(config.workers)[1]:
        raise ConfigError(
            f"--workers {config.workers}: there are only {valid} slices to validate on; give fewer "
            "workers"
        )
    goes_on = (
        isinstance(config, TrainConfig) and config.resume and output.has_finished_epochs(config)
    )
    if config.arch == "dynamic" and config.encoder_weights != "none" and not goes_on:
        _check_encoder_weights(config)
    return rows, split


def _check_encoder_weights(config: RecipeConfig) -> None:
    """Load the weights once, so that an error comes in seconds and not from every worker."""
    from segmodel.models.pretrained import load_encoder
    from segmodel.models.registry import ModelSettings, build_model

    model = build_model(ModelSettings(arch="dynamic", channels=3, encoder=config.encoder))
    load_encoder(model, config.encoder, config.encoder_weights)


def _tags(config: RecipeConfig) -> list[str]:
    return [config.arch, config.encoder] if config.arch == "dynamic" else [config.arch]


def _begin(config: RecipeConfig, archive: Archive, split: Split, tracker: Tracker) -> None:
    s3.retry_for_minutes()
    store.publish_json(store.join(config.output, output.SPLIT), asdict(split))
    tracker.record("archive", {"id": archive.info.archive_id, "slices": archive.info.slices})
    tracker.record(
        "data", {"training_patients": len(split.train), "validation_patients": len(split.valid)}
    )


def _write_page(config: RecipeConfig, tracker: Tracker) -> None:
    training_page.write(config.output)
    content = store.read_bytes(store.join(config.output, REPORT))
    tracker.upload("report", content, "html", shows_patients=True)


def _upload_figures(config: RecipeConfig, tracker: Tracker) -> None:
    folder = store.join(config.output, "figures")
    own = {*output.TRAINING.results, *output.RANGE_TEST.results}
    for name in store.list_files(folder, ".png"):
        if f"figures/{name}" not in own:
            continue
        picture = store.read_bytes(store.join(folder, name))
        figure = f"figures/{name.removesuffix('.png')}"
        tracker.upload(figure, picture, "png", shows_patients=name not in output.CURVES)
