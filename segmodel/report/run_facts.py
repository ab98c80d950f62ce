"""What a segmentation's page says of the run and its model."""

from datetime import datetime
from typing import Any

from segmodel.core.errors import CheckpointError
from segmodel.core.progress import format_duration
from segmodel.models import checkpoint
from segmodel.report.page import number
from segmodel.runs.run_file import Run


def of_run(run: Run) -> list[tuple[str, str]]:
    """Name and value of what ran, how and when."""
    taken, settings = run.fingerprint, run.settings
    started = datetime.fromisoformat(run.started)
    finished = datetime.fromisoformat(run.finished or run.started)
    speed = run.slices_per_second
    return [
        ("Run", taken.sha256),
        ("Archive", settings["archive"]),
        ("Archive id", taken.archive_id),
        ("Started", f"{started:%Y-%m-%d %H:%M:%S} UTC"),
        (
            "Finished",
            f"{finished:%Y-%m-%d %H:%M:%S} UTC, "
            f"{format_duration((finished - started).total_seconds())} later",
        ),
        ("Speed", "unknown" if speed is None else f"{speed:,.3g} slices a second in the last call"),
        ("Threshold", f"{taken.threshold:g}"),
        ("Precision", taken.precision),
        ("Test-time augmentation", taken.test_time_augmentation or "none"),
        ("Postprocessing", _postprocessing(run.summary)),
        (
            "Shards",
            f"{number(run.finished_counts.shards)} of about {taken.shard_slices} slices",
        ),
        ("segmodel", f"{taken.code_version}, code {taken.code_sha256[:12]}"),
    ]


def _postprocessing(how: Any) -> str:
    if not isinstance(how, dict):
        return "none"
    parts = ["largest component of each series"] if how.get("keep_largest") else []
    if how.get("min_volume_ml") is not None:
        parts.append(f"components of {how['min_volume_ml']:g} ml or more")
    return ", ".join(parts) or "none"


def of_model(run: Run) -> list[tuple[str, str]]:
    """Names and values of facts about the model; with its card if the checkpoint is unchanged."""
    taken, settings = run.fingerprint, run.settings
    facts = [("Checkpoint", settings["checkpoint"]), ("Weights", taken.weights_sha256)]
    try:
        card = checkpoint.read_card(checkpoint.find_checkpoint(settings["checkpoint"]))
    except (CheckpointError, OSError):
        return [*facts, ("Network", "unknown: the checkpoint no longer exists")]
    if card.weights_sha256 != taken.weights_sha256:
        return [*facts, ("Network", "unknown: the checkpoint now has other weights")]
    model = card.model
    network = f"{model.arch}" + (f", encoder {model.encoder}" if model.arch == "dynamic" else "")
    validation = (
        "unknown" if card.validation_patients is None else number(len(card.validation_patients))
    )
    return [
        *facts,
        ("Network", network),
        ("Channels", ", ".join(card.channels)),
        ("Image size", f"{card.image_size} pixels"),
        (
            "Patients",
            f"{number(len(card.training_patients))} in training, {validation} in validation",
        ),
        (
            "Validation",
            ", ".join(f"{name} {value:.3g}" for name, value in card.metrics.items()) or "unknown",
        ),
        (
            "Versions",
            ", ".join(f"{name} {v}" for name, v in (card.versions or {}).items()) or "unknown",
        ),
    ]
