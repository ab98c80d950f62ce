"""The page of a training or a range test: curves, schedule, samples, patients, settings."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from segmodel.core.dice import EpochResult, best_epoch
from segmodel.core.errors import CheckpointError, ConfigError
from segmodel.core.progress import format_duration
from segmodel.models import checkpoint
from segmodel.report import embed, figures, kept_samples, page
from segmodel.report.kept_samples import PREDICTIONS, SAMPLES
from segmodel.report.page import REPORT, number
from segmodel.storage import csv_files, store

TRAINING, RANGE_TEST = "train.json", "find_lr.json"
SUGGESTION = "suggested_lr.json"
"""What the learning-rate range test suggests; `suggested_lr` is null where it suggests nothing."""
MAX_POINTS = 500
"""Of a curve; more would not be seen."""
_UNTOLD = ("run_id", "archive_id", "archive", "output", "tracking", "track_patients")
"""Settings that say nothing about how the network was trained, or stand elsewhere on the page."""

_UNUSED = {"classical": ("encoder", "encoder_weights"), "dynamic": ("width", "dropout")}
"""Settings that each network ignores."""

Row = Mapping[str, str]
Figure = tuple[Markup, str]
"""A figure and its caption."""


@dataclass(frozen=True)
class TrainingData:
    """The files of a training or a range test; what is not there is empty or None."""

    settings: Mapping[str, Any]
    split: Mapping[str, Sequence[str]]
    history: Sequence[EpochResult]
    steps: Sequence[Row]
    patients: Sequence[Row]
    range_test: Sequence[Row]
    suggestion: float | None
    epochs: int
    """That the settings ask for; 0 of a range test."""


def write(output: str, pictures: bool = True) -> None:
    """Publish the page in the folder of a training or of a range test.

    Args:
        output: the folder.
        pictures: whether the page shows slices of patients.

    Raises:
        ConfigError: the folder holds neither, or nothing that could be shown yet.
    """
    store.publish(store.join(output, REPORT), build(output, pictures).encode())


def build(output: str, pictures: bool) -> str:
    """The page, as HTML."""
    data = read(output)
    kept = {
        name: [kept_samples.draw(one) for one in kept_samples.read(store.join(output, name))]
        if pictures
        else []
        for name in (SAMPLES, PREDICTIONS)
    }
    return page.render(
        "training.html",
        title=output.rstrip("/").rsplit("/", 1)[-1],
        kind="Training" if data.epochs else "Learning-rate range test",
        output=output,
        tiles=_tiles(data),
        notes=_notes(data, pictures),
        curves=_curves(data),
        schedule=_schedule(data),
        range_test=_range_test(data),
        predictions=kept[PREDICTIONS],
        samples=kept[SAMPLES],
        patients=_patients(data),
        epochs=_epochs(data),
        data_facts=[
            ("Archive", data.settings.get("archive", "unknown")),
            ("Training patients", number(len(data.split["train"]))),
            ("Validation patients", number(len(data.split["valid"]))),
        ],
        settings=_settings(data),
        model=_model_facts(output),
    )


def read(output: str) -> TrainingData:
    """Read the files.

    Raises:
        ConfigError: a file is damaged, or nothing is there that could be shown yet.
    """
    is_training = store.exists(store.join(output, TRAINING))
    try:
        settings = _json(output, TRAINING if is_training else RANGE_TEST)
        suggestion = (
            _json(output, SUGGESTION) if store.exists(store.join(output, SUGGESTION)) else {}
        )
        data = TrainingData(
            settings=settings,
            split=_json(output, "split.json"),
            history=[_epoch_result(row) for row in _csv(output, "history.csv")],
            steps=_csv(output, "steps.csv"),
            patients=_csv(output, "patients.csv"),
            range_test=_csv(output, "lr_find.csv"),
            suggestion=suggestion.get("suggested_lr"),
            epochs=sum(_listed(settings["epochs"])) if is_training else 0,
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{output} holds no training that can be read ({type(error).__name__}: {error}); "
            "give its command again"
        ) from error
    if not data.history and not data.range_test:
        raise ConfigError(f"{output}: no epoch is finished yet, so there is nothing to show")
    return data


def _json(output: str, name: str) -> dict[str, Any]:
    return dict(json.loads(store.read_bytes(store.join(output, name))))


def _csv(output: str, name: str) -> list[dict[str, str]]:
    path = store.join(output, name)
    return csv_files.read_csv(path) if store.exists(path) else []


def _epoch_result(row: Row) -> EpochResult:
    values: dict[str, Any] = {name: float(text) if text else None for name, text in row.items()}
    return EpochResult(**{**values, "epoch": int(row["epoch"])})


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _tiles(data: TrainingData) -> list[tuple[str, str]]:
    if not data.history:
        suggested = "none" if data.suggestion is None else f"{data.suggestion:.1e}"
        return [(suggested, "suggested learning rate"), (number(len(data.range_test)), "steps")]
    best = best_epoch(data.history)
    tiles = [
        (f"{best.dice:.3f}", "Dice of all validation voxels"),
        (f"{best.patient_dice:.3f}", "mean Dice of the validation patients"),
    ]
    if best.tumor_patient_dice not in (None, best.patient_dice):
        tiles.append((number(best.tumor_patient_dice, 3), "mean of those with tumor"))
    return [
        *tiles,
        (f"{best.epoch} of {data.epochs}", "best epoch"),
        (format_duration(sum(result.seconds for result in data.history)), "training time"),
        (f"{data.history[-1].slices_per_second:.3g}", "slices a second"),
    ]


def _notes(data: TrainingData, pictures: bool) -> list[tuple[str, str]]:
    """(text, level) of what a reader must know before any figure."""
    notes = []
    if len(data.history) < data.epochs:
        notes.append(
            (
                f"{len(data.history)} of {data.epochs} epochs are done. "
                "Give the same command with --resume to continue.",
                "warn",
            )
        )
    if data.history:
        notes.append(
            (
                "The epoch was chosen with the validation patients, so these figures are too good. "
                "To measure unseen patients, segment them and run jobs.evaluate.",
                "info",
            )
        )
    if not pictures:
        notes.append(("This page was written without pictures of patients.", "info"))
    return notes


def _curves(data: TrainingData) -> list[Figure]:
    if not data.history:
        return []
    return [
        _figure(
            lambda axis: figures.draw_losses(axis, data.history),
            "Loss of training and validation after each epoch.",
        ),
        _figure(
            lambda axis: figures.draw_dice(axis, data.history),
            "Dice of the validation patients after each epoch. Dashed: the best, kept in best/.",
        ),
    ]


def _schedule(data: TrainingData) -> list[Figure]:
    shown = embed.thin(data.steps, MAX_POINTS)
    if not shown:
        return []
    steps = [int(row["step"]) for row in shown]

    def drawn(column: str, color: str, caption: str) -> Figure:
        values = [float(row[column]) for row in shown]
        name = "learning rate" if column == "lr" else column
        return _figure(
            lambda axis: figures.draw_schedule(axis, steps, values, name, color), caption
        )

    return [
        drawn("lr", embed.COLORS[0], "Learning rate of each step (1cycle)."),
        drawn("momentum", embed.COLORS[1], "Momentum of each step."),
    ]


def _range_test(data: TrainingData) -> Figure | None:
    if not data.range_test:
        return None
    lrs, losses, smoothed = (
        [float(row[name]) for row in data.range_test] for name in ("lr", "loss", "smoothed_loss")
    )
    end = "" if data.suggestion is not None else " It suggests nothing."
    return _figure(
        lambda axis: figures.draw_range_test(axis, lrs, losses, smoothed, data.suggestion),
        f"Loss while the learning rate grows from step to step.{end}",
    )


def _figure(draw: Callable[[Axes], None], caption: str) -> Figure:
    figure, axis = embed.new_figure(5.0, 3.2)
    draw(axis)
    return embed.svg(figure, caption), caption


def _patients(data: TrainingData) -> list[list[str]]:
    """Rows of the table of validation patients, the lowest Dice first."""
    rows = sorted(data.patients, key=lambda row: float(row["dice"]))
    return [
        [
            row["patient_id"],
            f"{float(row['dice']):.3f}",
            number(int(row["tumor_voxels"])),
            number(int(row["slices"])),
        ]
        for row in rows
    ]


def _epochs(data: TrainingData) -> list[list[str]]:
    """Rows of the table of epochs."""
    return [
        [
            str(result.epoch),
            f"{result.train_loss:.4f}",
            f"{result.valid_loss:.4f}",
            f"{result.dice:.4f}",
            f"{result.patient_dice:.4f}",
            number(result.tumor_patient_dice, 4),
            format_duration(result.seconds),
        ]
        for result in data.history
    ]


def _settings(data: TrainingData) -> list[tuple[str, str]]:
    hidden = (*_UNTOLD, *_UNUSED[data.settings["arch"]])
    return [
        (name.replace("_", " "), ", ".join(map(str, _listed(value))))
        for name, value in sorted(data.settings.items())
        if name not in hidden and value is not None
    ]


def _model_facts(output: str) -> list[tuple[str, str]]:
    """What model.json of the best epoch says; nothing without one."""
    try:
        card = checkpoint.read_card(checkpoint.find_checkpoint(output))
    except CheckpointError:
        return []
    network = {name: value for name, value in asdict(card.model).items() if value is not None}
    return [
        ("Network", ", ".join(f"{name} {value}" for name, value in network.items())),
        ("Channels", ", ".join(card.channels)),
        ("Mean", ", ".join(f"{value:.4f}" for value in card.mean)),
        ("Standard deviation", ", ".join(f"{value:.4f}" for value in card.std)),
        ("Threshold", f"{card.threshold:g}"),
        ("Weights", card.weights_sha256),
        *((card.versions or {}).items()),
    ]
