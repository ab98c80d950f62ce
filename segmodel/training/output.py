"""The output folders of trainings and range tests: who may use one, and how a training resumes."""

import json
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from segmodel.archive.reader import Archive
from segmodel.core.errors import ConfigError
from segmodel.core.progress import say
from segmodel.data.splits import Split, split_patients
from segmodel.report.kept_samples import PREDICTIONS, SAMPLES
from segmodel.report.page import REPORT
from segmodel.report.training_page import SUGGESTION
from segmodel.runtime.tracking import TRACKED
from segmodel.settings.training import FindLrConfig, RecipeConfig, TrainConfig
from segmodel.storage import output_folder, store
from segmodel.storage.output_folder import OutputLayout

SPLIT = "split.json"
MODEL = ("best/model.json", "best/model.safetensors")
TRAINER = "last/trainer.pt"
"""Says how many epochs are done."""
TRAINING = OutputLayout(
    run_file="train.json",
    key="run_id",
    results=(
        "history.csv",
        "steps.csv",
        "patients.csv",
        SPLIT,
        "lr_find.csv",
        SUGGESTION,
        SAMPLES,
        PREDICTIONS,
        REPORT,
        "figures/samples.png",
        "figures/schedule.png",
        "figures/history.png",
        "figures/patients.png",
        "figures/lr_find.png",
        *MODEL,
        "last/model.json",
        "last/model.safetensors",
        TRAINER,
        TRACKED,
    ),
)
RANGE_TEST = OutputLayout(
    run_file="find_lr.json",
    key="lr_max",
    results=(
        SPLIT,
        "lr_find.csv",
        SUGGESTION,
        SAMPLES,
        REPORT,
        "figures/samples.png",
        "figures/lr_find.png",
        TRACKED,
    ),
)
CURVES = ("history.png", "lr_find.png", "schedule.png")
"""The figures that neither show nor name a patient."""
CHANGEABLE = (
    "tracking",
    "track_patients",
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
"""Settings that may change when a training resumes: where and how it runs, not its result."""
PATHS = ("archive", "output")
"""They may change too, because folders may be moved; the archive has an id."""


def find_training(config: TrainConfig, archive: Archive) -> str | None:
    """Find the training to resume; return the id of its tracked run, or None for a new training.

    Raises:
        ConfigError: the folder holds another training, or files of the user.
    """
    there = TRAINING.holds_run(config.output)
    if config.resume:
        if not there:
            raise ConfigError(
                f"--resume: {config.output} holds no training; leave --resume out to begin one"
            )
        return _resumed_run(config, archive)
    if there and not config.overwrite:
        raise ConfigError(
            f"{config.output} already holds a training; give --resume to go on with it, "
            "--overwrite to replace it, or another --output"
        )
    return None


def claim_training(config: TrainConfig, archive: Archive) -> str:
    """Take the folder for a new training, after `find_training`; returns the id of its tracked run.

    The model of an earlier training stays in best/ until the first epoch replaces it.
    """
    TRAINING.remove_results(config.output, keep=MODEL)
    run_id = uuid.uuid4().hex
    settings = _settings(config, archive) | {"run_id": run_id}
    store.publish_json(store.join(config.output, TRAINING.run_file), settings)
    return run_id


def release_training(config: TrainConfig) -> None:
    """Leave the folder to the next request, after a training that finished no epoch.

    Without the model of an earlier training it is left as a folder that no training has used.
    """
    TRAINING.remove_results(config.output, keep=MODEL)
    if not any(store.exists(store.join(config.output, name)) for name in MODEL):
        TRAINING.remove_run(config.output)


def check_range_test(config: FindLrConfig) -> None:
    """Refuse a folder that a range test must not use.

    Raises:
        ConfigError: it holds another range test, or files that this one did not write.
    """
    if RANGE_TEST.holds_run(config.output) and not config.overwrite:
        raise ConfigError(
            f"{config.output} already holds a range test; give --overwrite to replace it, or "
            "another --output"
        )


def claim_range_test(config: FindLrConfig) -> None:
    """Take the folder for a new range test, after `check_range_test`."""
    RANGE_TEST.remove_results(config.output)
    store.publish_json(store.join(config.output, RANGE_TEST.run_file), asdict(config))


def explain_full_disk(config: RecipeConfig) -> AbstractContextManager[None]:
    """Turn the error of a full disk into a DiskFullError that says what is kept and what to do."""

    def advice() -> str:
        again = "free some space there and give the same command"
        if not isinstance(config, TrainConfig):
            return f"Nothing is kept: {again} with --overwrite"
        if has_finished_epochs(config):
            return f"All epochs up to the last whole one are kept: {again} with --resume"
        begun = store.exists(store.join(config.output, TRAINING.run_file))
        return f"No epoch was finished: {again} {'with --resume' if begun else 'again'}"

    return output_folder.explain_full_disk(config.output, advice)


def has_finished_epochs(config: RecipeConfig) -> bool:
    """Whether the folder holds a training with at least one whole epoch."""
    return store.exists(store.join(config.output, TRAINER))


def load_or_make_split(config: RecipeConfig, counts: Mapping[str, int]) -> Split:
    """Split the patients; a training that resumes keeps its split, even if the archive has grown.

    Args:
        config: the request.
        counts: annotated slices of each patient.

    Raises:
        ConfigError: a patient of the training to resume has no masks any more.
    """
    path = store.join(config.output, SPLIT)
    if not (isinstance(config, TrainConfig) and config.resume and store.exists(path)):
        return split_patients(counts, config.seed)
    stored = _read_json(path, "train", "valid")
    split = Split(tuple(stored["train"]), tuple(stored["valid"]))
    patients = {*split.train, *split.valid}
    if gone := patients - set(counts):
        raise ConfigError(
            f"--resume: {config.archive} no longer has masks of "
            f"{', '.join(sorted(gone)[:3])}; start a new training"
        )
    if new := len(set(counts) - patients):
        say(
            f"{new} patients were added to the archive since this training began; it continues "
            "without them"
        )
    return split


def _resumed_run(config: TrainConfig, archive: Archive) -> str:
    stored = _read_json(store.join(config.output, TRAINING.run_file), "run_id")
    before, now = _result_settings(stored), _result_settings(_settings(config, archive))
    changed = [
        f"{key} was {before.get(key)!r}, is {value!r}"
        for key, value in now.items()
        if before.get(key) != value
    ]
    if changed:
        raise ConfigError(
            f"--resume: {config.output} was begun with other settings: {'; '.join(changed)}"
        )
    return str(stored["run_id"])


def _settings(config: TrainConfig, archive: Archive) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(config).items() if name not in CHANGEABLE}
    return dict(json.loads(json.dumps(settings | {"archive_id": archive.info.archive_id})))


def _result_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a training's result depends on."""
    deciding = {name: value for name, value in settings.items() if name not in PATHS}
    # After an epoch, the weights are in trainer.pt; before that, there is nothing to lose.
    if deciding.get("encoder_weights") not in ("imagenet", "none"):
        deciding["encoder_weights"] = "a file"
    return deciding


def _read_json(path: str, *keys: str) -> dict[str, Any]:
    try:
        values = json.loads(store.read_bytes(path))
        return {**values, **{key: values[key] for key in keys}}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--resume: {path} is damaged ({type(error).__name__}: {error}); start a new training "
            "with --overwrite"
        ) from error
