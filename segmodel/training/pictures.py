"""Pictures of a training's patients: samples with masks, and predictions of the best epoch."""

from collections.abc import Sequence

import numpy as np

from segmodel.archive.slice_format import shown_channel
from segmodel.data.dataset import SliceDataset
from segmodel.inference.predictor import Predictor
from segmodel.models import checkpoint
from segmodel.report import figures, kept_samples, ranking
from segmodel.report.figures import Sample
from segmodel.report.kept_samples import PREDICTIONS, SAMPLES
from segmodel.settings.training import RecipeConfig
from segmodel.storage import csv_files, store
from segmodel.training.task import Worker, WorkerTask

SHOWN_SAMPLES = 12


def figure_uri(config: RecipeConfig, name: str) -> str:
    """The URI of a figure of this training."""
    return store.join(config.output, "figures", name)


def show_samples(train: SliceDataset, task: WorkerTask) -> None:
    """Draw some training slices with their masks, evenly chosen, those with tumor first."""
    channel = shown_channel(train.archive.info.channels)
    indices = np.unique(
        np.linspace(0, len(train) - 1, 8 * SHOWN_SAMPLES).round().astype(int)
    ).tolist()
    pixels_nhwc, mask_nhw, _ = train[indices]
    order = sorted(range(len(indices)), key=lambda n: not mask_nhw[n].any())[:SHOWN_SAMPLES]
    samples = [
        Sample(
            title=train.rows.patients[train.rows.patient_n[indices[n]]],
            image_hw=pixels_nhwc[n, ..., channel].numpy(),
            truth_hw=mask_nhw[n].bool().numpy(),
            prediction_hw=None,
            note="",
        )
        for n in sorted(order)
    ]
    shown = [(sample.title, sample.image_hw, sample.truth_hw) for sample in samples]
    title = f"Training slices, {train.archive.info.channels[channel]}, with their masks"
    task.publish(figures.sample_slices, shown, title, figure_uri(task.config, "samples.png"))
    task.publish(kept_samples.publish, store.join(task.config.output, SAMPLES), samples)


def show_patients(worker: Worker) -> None:
    """Draw the best, the median and the worst validation patient with tumor of the best epoch.

    The training's page shows a few more, which are kept in `PREDICTIONS`.
    """
    task, valid, device = worker.task, worker.valid, worker.context.device
    output = task.config.output
    ranked = rank_patients(csv_files.read_csv(store.join(output, "patients.csv")))
    model, card = checkpoint.load(store.join(output, "best"))
    predictor = Predictor(
        model,
        card,
        batch_size=1,
        threshold=card.threshold,
        device=device,
        precision="bf16" if device.type == "cuda" else "fp32",
    )
    channel = shown_channel(card.channels)
    samples: dict[int, Sample] = {}
    for place, name in ranking.places(len(ranked)).items():
        row = ranked[place]
        own = np.flatnonzero(
            valid.rows.patient_n == valid.rows.patients.index(row["patient_id"])
        ).tolist()
        pixels_nhwc, mask_nhw, _ = valid[own]
        shown = int(mask_nhw.sum(dim=(1, 2)).argmax())
        prediction = predictor.predict(pixels_nhwc[shown : shown + 1].numpy())
        samples[place] = Sample(
            title=f"{name}: {row['patient_id']}",
            image_hw=pixels_nhwc[shown, ..., channel].numpy(),
            truth_hw=mask_nhw[shown].bool().numpy(),
            prediction_hw=prediction.mask_nhw[0],
            note=f"Dice of the patient {float(row['dice']):.3f}",
        )
    kept = list(samples.values())
    task.publish(kept_samples.publish, store.join(output, PREDICTIONS), kept)
    sheet = sorted({0, len(ranked) // 2, len(ranked) - 1})
    task.publish(
        figures.compared_slices,
        [samples[place] for place in sheet],
        "Validation patients, the slice with most tumor",
        figure_uri(task.config, "patients.png"),
        card.channels[channel],
    )


def rank_patients(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Sort rows of patients.csv by falling Dice, those with tumor only unless there are none.

    A patient without tumor has a Dice of 1 if nothing is found.
    """
    with_tumor = [row for row in rows if int(row["tumor_voxels"])]
    return sorted(with_tumor or rows, key=lambda row: -float(row["dice"]))
