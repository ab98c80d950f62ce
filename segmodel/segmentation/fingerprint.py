"""What a run's masks depend on: two runs with the same fingerprint have the same masks."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import segmodel
from segmodel.archive.reader import Archive
from segmodel.models.checkpoint import ModelCard
from segmodel.settings.segment import SegmentConfig

UNDECIDED = "auto"
"""Precision of a run that has not begun: it depends on the machine."""

_MASK_CODE = ("models", "inference", "data/preprocessing.py", "archive/slice_format.py", "core/mask_png.py",
              "runs/shard_reader.py", "segmentation/worker.py")  # fmt: skip
"""Modules and packages that decide what a mask looks like."""
_NO_MASK_CODE = ("models/cost.py", "models/pretrained.py")
"""Modules of those packages that only a training or a comparison uses."""

Fingerprint = dict[str, Any]


def fingerprint(
    config: SegmentConfig, archive: Archive, card: ModelCard, threshold: float, precision: str
) -> Fingerprint:
    """All that decides what a mask looks like and which file it is in, and the SHA-256 over it."""
    how = {
        "model": asdict(card.model),
        "image_size": card.image_size,
        "mean": card.mean,
        "std": card.std,
    }
    return _with_sha256(
        {
            "weights_sha256": card.weights_sha256,
            "model_settings_sha256": _sha256(how),
            "threshold": threshold,
            "precision": precision,
            "archive_id": archive.info.archive_id,
            "shard_slices": config.shard_slices,
            "test_time_augmentation": "flips" if config.tta else None,
            "code_version": segmodel.__version__,
            "code_sha256": code_sha256(),
        }
    )


def with_precision(found: Fingerprint, precision: str) -> Fingerprint:
    """The same with the precision that was decided on."""
    parts = {name: value for name, value in found.items() if name != "sha256"}
    return _with_sha256({**parts, "precision": precision})


def code_sha256() -> str:
    """A hash of the modules that decide what a mask looks like."""
    package = Path(segmodel.__file__).parent
    digest = hashlib.sha256()
    for name in _MASK_CODE:
        place = package / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            module = path.relative_to(package).as_posix()
            if module not in _NO_MASK_CODE:
                digest.update(f"{module}\0".encode())
                digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _with_sha256(parts: dict[str, Any]) -> Fingerprint:
    return {**parts, "sha256": _sha256(parts)}


def _sha256(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
