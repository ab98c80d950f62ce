"""The whole chain on phantom patients: archive, training, segmentation, volumes, one picture."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segmodel.archive.reader import Archive
from segmodel.archive.slice_format import image, shown_channel
from segmodel.core.dice import dice
from segmodel.core.mask_png import decode_mask
from segmodel.core.progress import say
from segmodel.ingestion.driver import ingest
from segmodel.report.figures import Sample, compared_slices
from segmodel.runtime import ray_cluster
from segmodel.segmentation.driver import segment_archive
from segmodel.settings.demo import DemoConfig
from segmodel.settings.ingest import IngestConfig
from segmodel.settings.segment import SegmentConfig
from segmodel.settings.training import TrainConfig
from segmodel.storage import store
from segmodel.storage.output_folder import OutputLayout
from segmodel.training.driver import train

PATIENTS, SLICES, SIZE, EPOCHS, BATCH, LEARNING_RATE = 16, 12, 96, 4, 8, 1e-3
LAYOUT = OutputLayout(
    run_file="demo.json", key="seed", results=("archive", "model", "run", "contact-sheet.png")
)


@dataclass(frozen=True)
class DemoResult:
    """Where everything is."""

    archive: str
    model: str
    run: str
    contact_sheet: str
    volumes: pa.Table
    best_dice: float


def demo(config: DemoConfig) -> DemoResult:
    """Run the chain into `config.output`.

    Raises:
        ConfigError: the folder holds something that the demo would replace and did not make.
    """
    archive, model, run = (store.join(config.output, name) for name in ("archive", "model", "run"))
    LAYOUT.holds_run(config.output)
    LAYOUT.remove_results(config.output)
    store.publish_json(store.join(config.output, LAYOUT.run_file), asdict(config))
    with ray_cluster.connect():
        say(f"1/4  ingest: making {PATIENTS} patients")
        ingest(
            IngestConfig(
                archive=archive,
                format="phantom",
                phantom_patients=PATIENTS,
                phantom_slices=SLICES,
                phantom_size=SIZE,
                seed=config.seed,
                tracking=config.tracking,
                track_patients=config.track_patients,
            )
        )
        say(f"2/4  train: DynamicUnet on ResNet18 from scratch, {EPOCHS} epochs")
        training = train(
            TrainConfig(
                archive=archive,
                output=model,
                encoder="resnet18",
                encoder_weights="none",
                image_size=SIZE,
                epochs=EPOCHS,
                batch_size=BATCH,
                lr=LEARNING_RATE,
                seed=config.seed,
                tracking=config.tracking,
                track_patients=config.track_patients,
            )
        )
        say("3/4  segment: every slice of the archive")
        segment_archive(
            SegmentConfig(
                archive=archive,
                checkpoint=model,
                output=run,
                tracking=config.tracking,
                track_patients=config.track_patients,
            )
        )
    say("4/4  picture: the validation patients")
    picture = store.join(config.output, "contact-sheet.png")
    patients = json.loads(store.read_bytes(store.join(model, "split.json")))["valid"]
    samples = [_sample(archive, run, patient) for patient in patients]
    compared_slices(samples, "Made-up validation patients", picture)
    with store.open_parquet(store.join(run, "volumes.parquet")) as file:
        return DemoResult(archive, model, run, picture, file.read(), training.best.dice)


def _sample(archive_uri: str, run: str, patient: str) -> Sample:
    """The slice of a patient with most tumor, or the middle one; the note is the patient's Dice."""
    archive = Archive(archive_uri)
    slices = _patient_rows(archive_uri, archive.files, patient).sort_by("slice_index").to_pylist()
    names = store.list_files(store.join(run, "masks"), ".parquet")
    masks = {
        row["slice_id"]: row
        for row in _patient_rows(store.join(run, "masks"), names, patient).to_pylist()
    }
    truth = np.stack([_array(row, "mask", 1)[..., 0] > 0 for row in slices])
    prediction = np.stack([decode_mask(masks[row["slice_id"]]["mask"]) for row in slices])
    shown = int(truth.sum(axis=(1, 2)).argmax()) if truth.any() else len(slices) // 2
    pixels_hwc = _array(slices[shown], "pixels", len(archive.info.channels))
    return Sample(
        title=f"{patient}\nslice {slices[shown]['slice_index']}",
        image_hw=pixels_hwc[..., shown_channel(archive.info.channels)],
        truth_hw=truth[shown],
        prediction_hw=prediction[shown],
        note=f"Dice of the patient {dice(prediction, truth):.3f}" if truth.any() else "no tumor",
    )


def _patient_rows(folder: str, names: list[str], patient: str) -> pa.Table:
    tables = []
    for name in names:
        with store.open_parquet(store.join(folder, name)) as file:
            table = file.read()
        tables.append(table.filter(pc.equal(table["patient_id"], patient)))
    return pa.concat_tables(tables)


def _array(row: dict[str, Any], column: str, channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return image(pa.scalar(row[column]), row["height"], row["width"], channels)
