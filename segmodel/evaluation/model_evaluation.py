"""Evaluates one trained model on annotated patients: speed, cost and Dice."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from segmodel.archive.annotations import SliceRows
from segmodel.archive.reader import Archive
from segmodel.archive.slice_format import images

if TYPE_CHECKING:
    from segmodel.inference.predictor import Predictor
    from segmodel.models.checkpoint import ModelCard

BATCH = 16


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


@dataclass(frozen=True)
class TrainedModel:
    """A model of the comparison."""

    name: str
    """In the table."""
    folder: str
    """Of the checkpoint."""
    training_seconds: float | None


@dataclass(frozen=True)
class Hardware:
    """What a model runs on."""

    use_gpu: bool
    cpus: int
    precision: Literal["auto", "bf16", "fp32"]
    """Of the forward pass."""


def evaluate(
    archive_uri: str, rows: SliceRows, model: TrainedModel, hardware: Hardware
) -> tuple[ModelRow, dict[str, float]]:
    """One model on some patients: its line of the table, and each patient's Dice."""
    from segmodel.core.dice import PatientDice, dice_of_counts, tumor_patient_mean
    from segmodel.models.cost import count_flops, count_parameters

    predictor, card = _load(model.folder, hardware)
    counts, seconds = _count_voxels(predictor, Archive(archive_uri), rows)
    each = [PatientDice(dice_of_counts(*own), int(own[2])) for own in counts.tolist()]
    dice = {name: own.dice for name, own in zip(rows.patients, each, strict=True)}
    row = ModelRow(
        model=model.name,
        parameters=count_parameters(predictor.model),
        gflop_per_slice=count_flops(card.model, card.image_size) / 1e9,
        precision=predictor.precision,
        slices_per_second=len(rows) / seconds,
        dice=dice_of_counts(*counts.sum(axis=0).tolist()),
        patient_dice=sum(dice.values()) / len(dice),
        tumor_patient_dice=tumor_patient_mean(each),
        training_seconds=model.training_seconds,
    )
    return row, dice


def _load(folder: str, hardware: Hardware) -> tuple["Predictor", "ModelCard"]:
    """The model of a checkpoint, on its device."""
    import torch

    from segmodel.inference.precision import choose_precision
    from segmodel.inference.predictor import Predictor
    from segmodel.models import checkpoint
    from segmodel.models.cpu import set_up_cpu

    use_gpu = hardware.use_gpu
    set_up_cpu(None if use_gpu else hardware.cpus)
    model, card = checkpoint.load(folder)
    predictor = Predictor(
        model,
        card,
        batch_size=BATCH,
        threshold=card.threshold,
        device=torch.device("cuda" if use_gpu else "cpu"),
        precision=choose_precision(hardware.precision, use_gpu, model, card),
    )
    return predictor, card


def _count_voxels(
    predictor: "Predictor", archive: Archive, rows: SliceRows
) -> tuple[npt.NDArray[np.float64], float]:
    """Voxels of each patient, (patients, 3), and the seconds that the forward passes took.

    The voxels are those of the intersection, the predicted mask and the true mask.
    """
    counts = np.zeros((len(rows.patients), 3))
    seconds = 0.0
    for number, (pixels_nhwc, truth_nhw, patient_n) in enumerate(_batches(archive, rows)):
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
    return counts, seconds


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
