"""What a run's masks depend on: two runs with the same fingerprint have the same masks."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import segmodel
from segmodel.archive.reader import Archive
from segmodel.models.checkpoint import ModelCard
from segmodel.runs.run_file import Fingerprint, sha256_of
from segmodel.settings.segment import SegmentConfig

_MASK_CODE = (
    "models",
    "inference",
    "data/preprocessing.py",
    "archive/slice_format.py",
    "core/mask_png.py",
    "runs/shard_reader.py",
    "segmentation/shard_prediction.py",
    "segmentation/worker.py",
)
"""Modules and packages that decide what a mask looks like."""
_NO_MASK_CODE = ("models/cost.py", "models/pretrained.py")
"""Modules of those packages that only a training or a comparison uses."""


def fingerprint(config: SegmentConfig, archive: Archive, card: ModelCard) -> Fingerprint:
    """The fingerprint that a request asks for; the precision may be undecided."""
    how = {
        "model": asdict(card.model),
        "image_size": card.image_size,
        "mean": card.mean,
        "std": card.std,
    }
    return Fingerprint(
        weights_sha256=card.weights_sha256,
        model_settings_sha256=sha256_of(how),
        threshold=card.threshold if config.threshold is None else config.threshold,
        precision=config.precision,
        archive_id=archive.info.archive_id,
        shard_slices=config.shard_slices,
        test_time_augmentation="flips" if config.tta else None,
        code_version=segmodel.__version__,
        code_sha256=code_sha256(),
    )


def code_sha256() -> str:
    """A hash of the modules on which the masks depend."""
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
