"""Several models on the same patients: one table, one figure."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import ray

from segmodel.archive.annotations import SliceRows, find_annotated
from segmodel.archive.reader import Archive
from segmodel.archive.slice_format import images
from segmodel.core.errors import ArchiveError, ConfigError
from segmodel.core.progress import say
from segmodel.evaluation.paper_table import pipe_table
from segmodel.report import figures
from segmodel.runtime import ray_cluster
from segmodel.runtime.tracking import TRACKED, open_tracker, settings_of
from segmodel.settings.training import CompareConfig, TrainConfig
from segmodel.storage import csv_files, folder_lock, store
from segmodel.storage.output_folder import OutputLayout, explain_full_disk
from segmodel.training.driver import train
from segmodel.training.output import find_training

BATCH = 16
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


@dataclass(frozen=True)
class ModelRow:
    """One line of the table."""

    model: str
    parameters: int
    gflop_per_slice: float
    """Of one forward pass at the model's image size; a multiplication and an addition are two."""
    precision: str
    """Of the forward pass: bf16 or fp32."""
    slices_per_second: float
    """Of the forward pass with scaling to the model's image size and back, on one worker."""
    dice: float
    """Of all voxels of the patients together."""
    patient_dice: float
    """Mean of the patients' 3D Dice."""
    tumor_patient_dice: float | None
    """The same of the patients with tumor; None without any."""
    training_seconds: float | None
    """None where the checkpoint's folder does not tell."""


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
        table = [row for row, _ in found]
        held.check()
        store.publish_json(store.join(config.output, LAYOUT.run_file), settings_of(config))
        csv_files.publish_csv(
            store.join(config.output, "compare.csv"), [asdict(row) for row in table]
        )
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
    task = ray.remote(num_cpus=cpus, num_gpus=int(use_gpu))(_evaluate)
    names = _names(checkpoints)
    return [
        ray_cluster.get_result(
            task.remote(
                config.archive,
                rows.of(unseen),
                folder,
                name,
                _training_seconds(given),
                use_gpu,
                cpus,
                config.precision,
            )
        )
        for folder, given, name in zip(folders, checkpoints, names, strict=True)
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


def _evaluate(
    archive_uri: str,
    rows: SliceRows,
    folder: str,
    name: str,
    training_seconds: float | None,
    use_gpu: bool,
    threads: int,
    precision: Literal["auto", "bf16", "fp32"],
) -> tuple[ModelRow, dict[str, float]]:
    """One model on some patients: its line of the table, and each patient's Dice."""
    import torch

    from segmodel.core.dice import PatientDice, dice_of_counts, tumor_patient_mean
    from segmodel.inference.precision import choose_precision
    from segmodel.inference.predictor import Predictor
    from segmodel.models import checkpoint
    from segmodel.models.cost import count_flops, count_parameters
    from segmodel.models.cpu import set_up_cpu

    set_up_cpu(None if use_gpu else threads)
    model, card = checkpoint.load(folder)
    device = torch.device("cuda" if use_gpu else "cpu")
    predictor = Predictor(
        model,
        card,
        batch_size=BATCH,
        threshold=card.threshold,
        device=device,
        precision=choose_precision(precision, use_gpu, model, card),
    )
    counts = np.zeros((len(rows.patients), 3))
    seconds = 0.0
    for number, (pixels_nhwc, truth_nhw, patient_n) in enumerate(
        _batches(Archive(archive_uri), rows)
    ):
        if number == 0:
            predictor.predict(pixels_nhwc)  # the first pass of a process is a slow one
        started = time.monotonic()
        mask_nhw = predictor.predict(pixels_nhwc).mask_nhw
        seconds += time.monotonic() - started
        of_slice = np.stack(
            [voxels.sum(axis=(1, 2)) for voxels in (mask_nhw & truth_nhw, mask_nhw, truth_nhw)],
            axis=1,
        )
        np.add.at(counts, patient_n, of_slice)
    each = [PatientDice(dice_of_counts(*own), int(own[2])) for own in counts.tolist()]
    dice = {name: own.dice for name, own in zip(rows.patients, each, strict=True)}
    row = ModelRow(
        model=name,
        parameters=count_parameters(model),
        gflop_per_slice=count_flops(card.model, card.image_size) / 1e9,
        precision=predictor.precision,
        slices_per_second=len(rows) / seconds,
        dice=dice_of_counts(*counts.sum(axis=0).tolist()),
        patient_dice=sum(dice.values()) / len(dice),
        tumor_patient_dice=tumor_patient_mean(each),
        training_seconds=training_seconds,
    )
    return row, dice


def _batches(
    archive: Archive, rows: SliceRows
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.int32]]]:
    """Slices of one size: pixels uint8 (N, H, W, C), masks bool (N, H, W), numbers of patients."""
    from segmodel.data.dataset import read_annotated

    for number in np.unique(rows.shard_n):
        own = np.arange(*np.searchsorted(rows.shard_n, (number, number + 1)))
        table = read_annotated(archive, rows.shards[number], rows.row_n[own])
        shapes_n2 = np.stack([table[side].to_numpy() for side in ("height", "width")], axis=1)
        for height, width in np.unique(shapes_n2, axis=0).tolist():
            (same,) = np.nonzero((shapes_n2 == (height, width)).all(axis=1))
            for start in range(0, len(same), BATCH):
                chosen = same[start : start + BATCH]
                batch = table.take(chosen).combine_chunks()
                pixels_nhwc = images(batch["pixels"], height, width, len(archive.info.channels))
                yield (
                    pixels_nhwc,
                    images(batch["mask"], height, width, 1)[..., 0] == 1,
                    rows.patient_n[own[chosen]],
                )


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
