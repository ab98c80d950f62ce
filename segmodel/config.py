"""The settings of each job: frozen, documented field by field, checked once."""

import math
import os
from dataclasses import dataclass, field
from typing import Literal

from segmodel.errors import ConfigError

Tracking = Literal["neptune", "none"]
SOURCE_FORMATS = ("lgg", "phantom")
ENCODERS = ("resnet18", "resnet34", "resnet50")
SIZE_MULTIPLE = 32
"""Both U-Nets halve a slice up to five times: what enters them has sides that are multiples of this."""


def absolute_uri(uri: str) -> str:
    """The same place, named so that a process with another working directory finds it too."""
    if "://" in uri:
        return uri.rstrip("/")
    return os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111 - also takes out "..", as Path does not


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What every job takes."""

    tracking: Tracking = "neptune"
    """Where metrics go: to Neptune (offline, into the output folder, while NEPTUNE_API_TOKEN is not set), or nowhere."""

    def _resolve(self, *names: str) -> None:
        for name in names:
            uri = getattr(self, name)
            _require(uri != "", f"--{name} must name a folder, got an empty text")
            if uri is not None:
                object.__setattr__(self, name, absolute_uri(uri))

    def _check_device(self, gpu: bool, cpu: bool) -> None:
        _require(not (gpu and cpu), "--gpu and --cpu contradict each other: give one of them, or neither")


@dataclass(frozen=True, kw_only=True)
class IngestConfig(JobConfig):
    """Settings of jobs.ingest."""

    archive: str
    """Folder of the archive to write: a path or an s3:// URI."""
    format: Literal["lgg", "phantom"]
    """Layout of the source: lgg (a folder a patient, NAME_<slice>.tif beside NAME_<slice>_mask.tif) or phantom (made here)."""
    source: str | None = None
    """Folder of the raw scans: a path or an s3:// URI. Not used by phantom."""
    spacing_mm: tuple[float, float, float] | None = field(default=None, metadata={"metavar": ("ROW", "COL", "SLICE")})
    """Distance between voxel centres in mm, where the source does not tell; without it volumes stay null."""
    overwrite: bool = False
    """Replace an archive that is already there."""
    phantom_patients: int = 12
    """Patients that phantom makes."""
    phantom_slices: int = 20
    """Slices a phantom patient."""
    phantom_size: int = 96
    """Height and width of a phantom slice, pixels."""
    seed: int = 0
    """Seed of phantom."""

    def __post_init__(self) -> None:
        self._resolve("archive", "source")
        _require(
            self.format == "phantom" or self.source is not None,
            f"--format {self.format} needs --source: the folder of the scans",
        )
        _require(
            self.format != "phantom" or self.source is None,
            "--format phantom makes its own patients: leave --source out",
        )
        if self.spacing_mm is not None:
            object.__setattr__(self, "spacing_mm", tuple(self.spacing_mm))
            _require(
                len(self.spacing_mm) == 3 and all(math.isfinite(mm) and mm > 0 for mm in self.spacing_mm),
                f"--spacing-mm takes three lengths greater than 0, got {self.spacing_mm}",
            )
        for name in ("phantom_patients", "phantom_slices"):
            value = getattr(self, name)
            _require(value >= 1, f"--{name.replace('_', '-')} must be 1 or more, got {value}")
        _require(self.phantom_size >= 32, f"--phantom-size must be 32 or more, got {self.phantom_size}")
        _require(self.seed >= 0, f"--seed must be 0 or more, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(JobConfig):
    """Settings of jobs.train."""

    archive: str
    """Archive with masks: a path or an s3:// URI."""
    output: str
    """Folder for best/, last/, history.csv and split.json: a path that all nodes share, or an s3:// URI."""
    arch: Literal["dynamic", "classical"] = "dynamic"
    """dynamic: fastai's DynamicUnet over a ResNet encoder; classical: the U-Net of 2015."""
    encoder: Literal["resnet18", "resnet34", "resnet50"] = "resnet34"
    """Encoder of dynamic."""
    encoder_weights: str = "imagenet"
    """Where the encoder starts: imagenet, none, or the path of a torchvision state dict (.safetensors or .pth)."""
    dropout: float = 0.0
    """Dropout after the two deepest levels of classical, 0 to 1."""
    image_size: int = 256
    """Longest side of a slice as the model sees it, pixels; a multiple of 32."""
    epochs: int = 20
    """Passes over the training slices."""
    lr: float = 5e-3
    """Peak learning rate of the 1cycle schedule."""
    weight_decay: float = 1e-2
    """Decoupled weight decay."""
    batch_size: int = 32
    """Slices a step, over all workers together."""
    workers: int = 1
    """Data-parallel workers, one GPU or a share of the CPUs each."""
    gpu: bool = False
    """Demand a GPU for each worker. Default: GPUs if the cluster has any."""
    cpu: bool = False
    """Train on CPUs even where there are GPUs."""
    overwrite: bool = False
    """Train anew into a folder that already holds a training."""
    seed: int = 0
    """Of the split, the weights, the order of slices and the augmentation."""

    def __post_init__(self) -> None:
        self._resolve("archive", "output")
        self._check_device(self.gpu, self.cpu)
        _require(
            self.image_size >= SIZE_MULTIPLE and self.image_size % SIZE_MULTIPLE == 0,
            f"--image-size must be a multiple of {SIZE_MULTIPLE}, got {self.image_size}",
        )
        _require(0 <= self.dropout < 1, f"--dropout must be at least 0 and below 1, got {self.dropout}")
        _require(self.arch == "classical" or self.dropout == 0, "--dropout is for --arch classical")
        _require(self.epochs >= 1, f"--epochs must be 1 or more, got {self.epochs}")
        _require(math.isfinite(self.lr) and self.lr > 0, f"--lr must be greater than 0, got {self.lr}")
        _require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"--weight-decay must be 0 or more, got {self.weight_decay}",
        )
        _require(self.workers >= 1, f"--workers must be 1 or more, got {self.workers}")
        _require(
            self.batch_size >= self.workers and self.batch_size % self.workers == 0,
            f"--batch-size counts the slices of all workers together: {self.batch_size} cannot be divided by "
            f"{self.workers} workers",
        )
        _require(self.seed >= 0, f"--seed must be 0 or more, got {self.seed}")


def parse_workers(text: str) -> tuple[int, int]:
    """(min, max) of `N` or `MIN:MAX`."""
    low, _, high = text.partition(":")
    try:
        bounds = int(low), int(high or low)
    except ValueError:
        raise ConfigError(f"--workers takes N or MIN:MAX, got {text!r}") from None
    _require(1 <= bounds[0] <= bounds[1], f"--workers takes N or MIN:MAX with 1 <= MIN <= MAX, got {text!r}")
    return bounds


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(JobConfig):
    """Settings of jobs.segment."""

    archive: str
    """Archive to segment: a path or an s3:// URI."""
    checkpoint: str
    """Checkpoint folder, or the output folder of a training (its best/ is then taken)."""
    output: str
    """Run folder: a path that all nodes share, or an s3:// URI. A run that broke off continues there."""
    workers: str | None = None
    """Actors, N or MIN:MAX, one GPU or a share of the CPUs each. Default: one a GPU, or one that takes all CPUs."""
    batch_size: int = 32
    """Slices in one forward pass."""
    threshold: float | None = None
    """A pixel is tumor where its probability is greater. Default: the checkpoint's."""
    shard_slices: int = 512
    """Slices a shard, rounded up to whole row groups: what is done again when a worker dies. Fixed for a run folder."""
    max_quarantined: float = 0.01
    """Share of slices that may end in quarantine before the exit code becomes 3."""
    gpu: bool = False
    """Demand a GPU for each actor. Default: GPUs if the cluster has any."""
    cpu: bool = False
    """Segment on CPUs even where there are GPUs."""

    def __post_init__(self) -> None:
        self._resolve("archive", "checkpoint", "output")
        self._check_device(self.gpu, self.cpu)
        if self.workers is not None:
            parse_workers(self.workers)
        _require(self.batch_size >= 1, f"--batch-size must be 1 or more, got {self.batch_size}")
        _require(
            self.threshold is None or 0 < self.threshold < 1,
            f"--threshold must lie between 0 and 1, got {self.threshold}",
        )
        _require(self.shard_slices >= 1, f"--shard-slices must be 1 or more, got {self.shard_slices}")
        _require(0 <= self.max_quarantined <= 1, f"--max-quarantined is a share, 0 to 1, got {self.max_quarantined}")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(JobConfig):
    """Settings of jobs.demo."""

    output: str = "demo-output"
    """Folder for everything that the demo makes; what an earlier demo left there is replaced."""
    seed: int = 0
    """Of the patients and the training."""

    def __post_init__(self) -> None:
        self._resolve("output")
        _require("://" not in self.output, f"--output of the demo must be a local folder, got {self.output}")
        _require(self.seed >= 0, f"--seed must be 0 or more, got {self.seed}")
