"""Several models on the same patients: one table, one figure."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import ray

from segmodel.archive.annotations import SliceRows, find_annotated
from segmodel.archive.reader import Archive
from segmodel.core.errors import ArchiveError, ConfigError
from segmodel.core.progress import say
from segmodel.evaluation.model_evaluation import Hardware, ModelRow, TrainedModel, evaluate
from segmodel.evaluation.paper_table import pipe_table
from segmodel.report import figures
from segmodel.runtime import ray_cluster
from segmodel.runtime.tracker import Tracker
from segmodel.runtime.tracking import TRACKED, open_tracker, settings_of
from segmodel.settings.training import CompareConfig, TrainConfig
from segmodel.storage import csv_files, folder_lock, store
from segmodel.storage.output_folder import OutputLayout, explain_full_disk
from segmodel.training.driver import train
from segmodel.training.output import find_training

_FULL_DISK = (
    "Trainings that are done are kept: "
    "free some space there and give the same command with --resume"
)
ARCHITECTURES = ("dynamic", "classical")
"""In the order of training: what is wrong with the encoder's weights of dynamic shows at once."""
LAYOUT = OutputLayout(
    run_file="compare.json",
    key="checkpoints",
    results=("compare.csv", "compare.md", "figures/compare.png", TRACKED),
)
"""The trainings lie in folders of their own, which have their own run files."""


def compare(config: CompareConfig) -> str:
    """Train or take the models, evaluate them alike, and write tables and a figure.

    Returns:
        The table as Markdown.

    Raises:
        RequestError: of one kind or another.
        TrainingError: a training broke off.
    """
    archive = Archive(config.archive)
    rows = find_annotated(archive, config.mixed_sizes)
    _check_output(config, archive)
    with (
        ray_cluster.connect(),
        explain_full_disk(config.output, lambda: _FULL_DISK),
        folder_lock.acquire_lock(config.output) as held,
        open_tracker(config, "compare", config.output) as tracker,
    ):
        # Once more, now that no other job works in the folder: one may have done so since.
        _check_output(config, archive)
        checkpoints = config.checkpoints or [_train(config, arch) for arch in ARCHITECTURES][::-1]
        found = _evaluate_all(config, archive, rows, checkpoints)
        held.check()
        return _publish(config, found, tracker)


def _publish(
    config: CompareConfig, found: Sequence[tuple[ModelRow, dict[str, float]]], tracker: Tracker
) -> str:
    """Write and track the tables and the figure; returns the table as Markdown."""
    table = [row for row, _ in found]
    store.publish_json(store.join(config.output, LAYOUT.run_file), settings_of(config))
    csv_files.publish_csv(store.join(config.output, "compare.csv"), [asdict(row) for row in table])
    text = _markdown(table, patients=len(found[0][1]))
    store.publish(store.join(config.output, "compare.md"), text.encode())
    picture = store.join(config.output, "figures", "compare.png")
    figures.patient_dice({row.model: dice for row, dice in found}, picture)
    for number, row in enumerate(table, 1):
        values = asdict(row)
        tracker.record_private(f"models/{number}", {"model": values.pop("model")})
        tracker.record(f"models/{number}", values)
    tracker.upload("figures/compare", store.read_bytes(picture), "png", shows_patients=True)
    return text


def _check_output(config: CompareConfig, archive: Archive) -> None:
    for arch in () if config.checkpoints else ARCHITECTURES:
        find_training(_training(config, arch), archive)
    if LAYOUT.holds_run(config.output) and not (config.overwrite or config.resume):
        raise ConfigError(
            f"{config.output} already holds a comparison; give --overwrite to replace it, or "
            "another --output"
        )


def _train(config: CompareConfig, arch: Any) -> str:
    """Train with the comparison's settings; returns the folder of the training."""
    say(f"training {arch}")
    return train(_training(config, arch)).output


def _training(config: CompareConfig, arch: Any) -> TrainConfig:
    """The comparison's settings for one architecture."""
    settings = {field.name: getattr(config, field.name) for field in fields(TrainConfig)}
    output = store.join(config.output, arch)
    only = {"width": TrainConfig.width, "dropout": TrainConfig.dropout} if arch == "dynamic" else {}
    begun = store.exists(store.join(output, "train.json"))
    own = {"arch": arch, "output": output, "resume": config.resume and begun}
    return TrainConfig(**(settings | only | own))


def _evaluate_all(
    config: CompareConfig, archive: Archive, rows: SliceRows, checkpoints: Sequence[str]
) -> list[tuple[ModelRow, dict[str, float]]]:
    """Each model on the patients that none of them was trained on, one after the other.

    Slices keep their own size, as in a segmentation, whatever size the models were trained at.
    """
    from segmodel.models import checkpoint

    folders = [checkpoint.find_checkpoint(folder) for folder in checkpoints]
    seen = {
        patient for folder in folders for patient in checkpoint.read_card(folder).training_patients
    }
    unseen = [patient for patient in rows.patients if patient not in seen]
    if not unseen:
        raise ArchiveError(
            f"{config.archive}: every annotated patient was seen in the training of one of the "
            "models"
        )
    say(f"evaluating on {len(unseen)} patients that no model was trained on")
    use_gpu = ray_cluster.should_use_gpu(config.gpu, config.cpu, workers=1)
    cpus = 1 if use_gpu else ray_cluster.cpus_per_worker(1)
    hardware = Hardware(use_gpu, cpus, config.precision)
    models = [
        TrainedModel(name, folder, _training_seconds(given))
        for name, folder, given in zip(_names(checkpoints), folders, checkpoints, strict=True)
    ]
    task = ray.remote(num_cpus=cpus, num_gpus=int(use_gpu))(evaluate)
    chosen = rows.of(unseen)
    return [
        ray_cluster.get_result(task.remote(config.archive, chosen, model, hardware))
        for model in models
    ]


def _names(checkpoints: Sequence[str]) -> list[str]:
    """The last parts of the folders' names, as many as make the names distinct."""
    parts = [folder.rstrip("/").split("/") for folder in checkpoints]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(checkpoints)


def _training_seconds(folder: str) -> float | None:
    path = store.join(folder, "history.csv")
    if not store.exists(path):
        return None
    return sum(float(row["seconds"]) for row in csv_files.read_csv(path))


def _markdown(table: Sequence[ModelRow], patients: int) -> str:
    head = [
        "model",
        "parameters, million",
        "GFLOP a slice",
        "precision",
        "slices/s",
        "Dice",
        "Dice, mean of the patients",
        "of those with tumor",
        "training, min",
    ]
    rows = [head]
    for row in table:
        with_tumor = "" if row.tumor_patient_dice is None else f"{row.tumor_patient_dice:.4f}"
        minutes = "" if row.training_seconds is None else f"{row.training_seconds / 60:.1f}"
        rows.append(
            [
                row.model,
                f"{row.parameters / 1e6:.1f}",
                f"{row.gflop_per_slice:.1f}",
                row.precision,
                f"{row.slices_per_second:.3g}",
                f"{row.dice:.4f}",
                f"{row.patient_dice:.4f}",
                with_tumor,
                minutes,
            ]
        )
    text = "\n".join(pipe_table(rows))
    return f"{text}\n\nDice of {patients} patients that no model was trained on.\n"
