"""How `--help` shows the settings of all jobs: groups, placeholders of values, layout."""

import argparse
import shutil
from typing import Any

from jsonargparse import ActionYesNo, DefaultHelpFormatter

PATH_OR_URI = "PATH_OR_URI"

Metavar = str | tuple[str, ...] | None

GROUPS: dict[str, dict[str, Metavar]] = {
    "Input and output": {
        "format": None,
        "source": PATH_OR_URI,
        "archive": PATH_OR_URI,
        "dicom_source": PATH_OR_URI,
        "checkpoint": PATH_OR_URI,
        "checkpoints": "[A,B]",
        "segmentation": PATH_OR_URI,
        "run": PATH_OR_URI,
        "output": PATH_OR_URI,
        "overwrite": None,
        "append": None,
        "resume": None,
        "retry_failed": None,
        "dry_run": None,
        "without_pictures": None,
    },
    "Patients": {
        "patients": "ID",
        "with_images": None,
        "spacing_mm": ("ROW", "COL", "SLICE"),
        "max_rejected": "SHARE",
    },
    "NIfTI and DICOM": {
        "channels": "NAME",
        "percentiles": ("LOW", "HIGH"),
        "any_plane": None,
        "layout": None,
        "sequences": "NAME=PATTERN",
        "mask": "PATTERN",
        "tumor_labels": "N,N",
        "assume_axes": "XYZ",
        "series_rules": PATH_OR_URI,
        "hash_ids": None,
    },
    "Phantoms": {
        "phantom_patients": "N",
        "phantom_slices": "N",
        "phantom_size": "PIXELS",
    },
    "Network": {
        "arch": None,
        "encoder": None,
        "encoder_weights": "WEIGHTS",
        "dropout": "SHARE",
        "width": "CHANNELS",
        "image_size": "PIXELS",
        "mixed_sizes": None,
    },
    "Optimisation": {
        "epochs": "N",
        "lr": "LR",
        "lr_min": "LR",
        "lr_max": "LR",
        "steps": "N",
        "loss": None,
        "weight_decay": "X",
        "clip_norm": "NORM",
    },
    "Augmentation": {
        "max_rotation": "DEGREES",
        "max_zoom": "FACTOR",
        "max_gain": "FACTOR",
        "missing_sequences": "SHARE",
    },
    "Masks and volumes": {
        "threshold": "PROBABILITY",
        "tta": None,
        "keep_largest": None,
        "min_volume_ml": "ML",
        "max_quarantined": "SHARE",
        "tolerance_mm": "MM",
    },
    "Workers, batches and speed": {
        "workers": "N|MIN:MAX",
        "gpu": None,
        "cpu": None,
        "batch_size": "SLICES",
        "accumulate": "N",
        "shard_slices": "SLICES",
        "precision": None,
        "compile": None,
        "memory_format": None,
        "sync_batchnorm": None,
        "data": None,
        "max_failures": "N",
    },
    "Repeatability and tracking": {
        "seed": "N",
        "tracking": None,
        "track_patients": None,
    },
}
"""Group -> setting -> placeholder in the help. None: its choices, or nothing for a switch."""

WIDTH = 120
"""Columns where the terminal's are not known."""


class HelpFormatter(DefaultHelpFormatter):
    """One line per flag where the terminal is wide enough: flag, meaning and default; no types."""

    def __init__(self, prog: str, **options: Any) -> None:
        width = shutil.get_terminal_size((WIDTH, 24)).columns - 2
        # jsonargparse has types, but not here
        options |= {"max_help_position": 34, "width": width}
        super().__init__(prog, **options)  # type: ignore[no-untyped-call]

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if action.required:
            return f"{text} (required)"
        if default is None or default is False or default in ([], argparse.SUPPRESS):
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{text} (default {shown})"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, ActionYesNo):
            return f"--[no-]{action.option_strings[0].removeprefix('--')}"
        if action.nargs == 0 or not action.option_strings:
            return str(super()._format_action_invocation(action))
        # jsonargparse adds `--epochs+` to the names of a list
        return f"{action.option_strings[0]} {self._format_args(action, action.dest.upper())}"


class Switch(ActionYesNo):
    """`--NAME` and `--no-NAME`; in a file true or false."""

    def __init__(self, **options: Any) -> None:
        super().__init__(yes_prefix="", no_prefix="no-", **options)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Make the action of one flag or, given arguments, store what a command line says."""
        if arguments:
            return super().__call__(*arguments, **options)  # type: ignore[no-untyped-call]
        return Switch(**options, _yes_prefix="", _no_prefix="no-")  # the action of one flag

    def _check_type(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        raise TypeError(f"{self.dest} is true or false, got {value!r}")
