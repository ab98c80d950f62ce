"""The settings of each job: frozen, documented field by field, checked once."""

import math
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

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


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


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
    append: bool = False
    """Add new patients to an archive that is already there. A segmentation of it goes on with them."""
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
        _require(
            not (self.append and self.overwrite), "--append and --overwrite contradict each other: give one of them, or neither"
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
class RecipeConfig(JobConfig):
    """What a training and a learning-rate range test share: data, network, and all that happens in a step."""

    archive: str
    """Archive with masks: a path or an s3:// URI."""
    output: str
    """Folder for all results: a path that all nodes share, or an s3:// URI."""
    arch: Literal["dynamic", "classical"] = "dynamic"
    """dynamic: fastai's DynamicUnet over a ResNet encoder; classical: the U-Net of 2015."""
    encoder: Literal["resnet18", "resnet34", "resnet50"] = "resnet34"
    """Encoder of dynamic."""
    encoder_weights: str = "imagenet"
    """Where the encoder starts: imagenet, none, or the path of a torchvision state dict (.safetensors or .pth)."""
    dropout: float = 0.0
    """Dropout after the two deepest levels of classical, 0 to 1."""
    width: int = 64
    """Channels of the first level of classical; each of the four below has twice as many."""
    image_size: int = 256
    """Longest side of a slice as the model sees it, pixels; a multiple of 32."""
    loss: Literal["ce+dice", "ce"] = "ce+dice"
    """Cross-entropy plus soft Dice loss over the whole batch, or cross-entropy alone."""
    weight_decay: float = 1e-2
    """Decoupled weight decay."""
    batch_size: int = 16
    """Slices a step, over all workers together."""
    accumulate: int = 1
    """Forward and backward passes that a step's slices are spread over: less memory; Dice loss is then that of each pass."""
    clip_norm: float = 1.0
    """Largest norm of a step's gradient; a longer one is shortened to it. 0: never."""
    max_rotation: float = 15.0
    """Augmentation: each slice is rotated by up to so many degrees either way."""
    max_zoom: float = 1.0
    """Augmentation: each slice is enlarged or shrunk by up to this factor. 1: never."""
    max_gain: float = 1.3
    """Augmentation: each channel is made brighter or darker by up to this factor. 1: never."""
    missing_sequences: float = 0.25
    """Augmentation: share of slices whose channels all become FLAIR, as if nothing else had been scanned."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the forward pass. auto: bf16 (automatic mixed precision) on GPUs, fp32 on CPUs."""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """Of tensors; channels_last is faster wherever it was measured."""
    compile: bool = False
    """Compile the network with torch.compile: minutes once, then faster steps on a GPU."""
    sync_batchnorm: bool = False
    """Batch norm over the slices of all workers together; on GPUs only."""
    data: Literal["auto", "memory", "stream"] = "auto"
    """Training slices in memory, or read from the archive in every epoch. auto: in memory if they take at most half of it."""
    mixed_sizes: bool = False
    """Accept slices of several sizes: the longest side of each is scaled to the image size."""
    workers: str = "1"
    """Data-parallel workers, N or MIN:MAX (as many as the cluster has room for), one GPU or a share of the CPUs each."""
    gpu: bool = False
    """Demand a GPU for each worker. Default: GPUs if the cluster has any."""
    cpu: bool = False
    """Train on CPUs even where there are GPUs."""
    overwrite: bool = False
    """Replace what an earlier run left in the output folder."""
    seed: int = 0
    """Of the split, the weights, the order of slices and the augmentation."""

    def __post_init__(self) -> None:
        self._resolve("archive", "output")
        if self.encoder_weights not in ("", "imagenet", "none"):
            object.__setattr__(self, "encoder_weights", absolute_uri(self.encoder_weights))
        self._check_device(self.gpu, self.cpu)
        _require(
            self.image_size >= SIZE_MULTIPLE and self.image_size % SIZE_MULTIPLE == 0,
            f"--image-size must be a multiple of {SIZE_MULTIPLE}, got {self.image_size}",
        )
        _require(0 <= self.dropout < 1, f"--dropout must be at least 0 and below 1, got {self.dropout}")
        _require(self._has_classical or self.dropout == 0, "--dropout is for --arch classical")
        _require(self.width >= 1, f"--width must be 1 or more, got {self.width}")
        _require(self._has_classical or self.width == RecipeConfig.width, "--width is for --arch classical")
        for name in ("weight_decay", "clip_norm", "max_rotation"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, f"--{name.replace('_', '-')} must be 0 or more, got {value}")
        for name in ("max_zoom", "max_gain"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 1, f"--{name.replace('_', '-')} is a factor, 1 or more, got {value}")
        _require(0 <= self.missing_sequences <= 1, f"--missing-sequences is a share, 0 to 1, got {self.missing_sequences}")
        _require(not (self.sync_batchnorm and self.cpu), "--sync-batchnorm works on GPUs only: leave it or --cpu out")
        _require(self.accumulate >= 1, f"--accumulate must be 1 or more, got {self.accumulate}")
        most = parse_workers(self.workers)[1]
        _require(
            self.batch_size >= most * self.accumulate,
            f"--batch-size counts the slices of all workers together: {self.batch_size} cannot be shared by "
            f"{most} workers in {self.accumulate} passes",
        )
        _require(self.seed >= 0, f"--seed must be 0 or more, got {self.seed}")

    @property
    def _has_classical(self) -> bool:
        return self.arch == "classical"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RecipeConfig):
    """Settings of jobs.train."""

    epochs: int | list[int] = 20
    """Passes over the training slices. [5, 20]: a 1cycle of 5, then one of 20."""
    lr: float | Literal["auto"] | list[float | Literal["auto"]] = 1e-3
    """Peak learning rate of each 1cycle; auto: what the learning-rate range test suggests. [5e-3, 2e-3]: of either cycle."""
    resume: bool = False
    """Go on with the training that the output folder holds, from its last whole epoch."""
    max_failures: int = 3
    """How often the training goes on from the last whole epoch after a worker died."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.cycles != (), "--epochs must name at least one number of epochs")
        for epochs in _listed(self.epochs):
            _require(epochs >= 1, f"--epochs must be 1 or more, got {epochs}")
        for lr in _listed(self.lr):
            _require(lr == "auto" or (math.isfinite(lr) and lr > 0), f"--lr must be greater than 0, got {lr}")
        _require(self.max_failures >= 0, f"--max-failures must be 0 or more, got {self.max_failures}")
        _require(not (self.resume and self.overwrite), "--resume and --overwrite contradict each other: give one of them")

    @property
    def cycles(self) -> tuple[tuple[int, float | Literal["auto"]], ...]:
        """(epochs, peak learning rate) of each 1cycle, in their order.

        Raises:
            ConfigError: the two settings do not list equally many.
        """
        epochs, rates = _listed(self.epochs), _listed(self.lr)
        if len(rates) == 1:
            rates = rates * len(epochs)
        _require(len(epochs) == len(rates), f"--epochs lists {len(epochs)} cycles, --lr {len(rates)}")
        return tuple(zip(epochs, rates, strict=True))


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainConfig):
    """Settings of jobs.compare: those of jobs.train, which go for both networks; --arch is not used."""

    checkpoints: list[str] | None = None
    """Compare these, [A, B]: checkpoints or output folders of trainings, instead of training the two networks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoints is not None:
            object.__setattr__(self, "checkpoints", [absolute_uri(uri) for uri in self.checkpoints])
            _require(len(self.checkpoints) >= 2, "--checkpoints takes two folders or more: [A, B]")

    @property
    def _has_classical(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class FindLrConfig(RecipeConfig):
    """Settings of jobs.find_lr."""

    NOT_USED: ClassVar = ("epochs", "lr", "max_failures")
    """Settings of jobs.train that a file for both may hold."""

    lr_min: float = 1e-7
    """Learning rate of the first step."""
    lr_max: float = 10.0
    """Learning rate of the last step."""
    steps: int = 100
    """Steps; fewer if the loss diverges."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            0 < self.lr_min < self.lr_max < math.inf,
            f"--lr-min must be greater than 0 and below --lr-max, got {self.lr_min} and {self.lr_max}",
        )
        _require(self.steps >= 11, f"--steps must be 11 or more, got {self.steps}")


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
    """Actors, N or MIN:MAX, one GPU or a share of the CPUs each. Default: one a GPU; without GPUs one a machine."""
    batch_size: int | None = None
    """Slices in one forward pass; halved where the memory is too small. Default: 128 on a GPU, 32 on CPUs."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile: half a minute more at the start, then twice as fast on a GPU. auto: on GPUs, from 20,000 slices on."""
    threshold: float | None = None
    """A pixel is tumor where its probability is greater. Default: the checkpoint's."""
    shard_slices: int = 512
    """Slices a shard, rounded up to whole row groups: what is done again when a worker dies. Fixed for a run folder."""
    tta: bool = False
    """Test-time augmentation: the mean of a slice and its three mirror images, for four times the work. Fixed for a run."""
    keep_largest: bool = False
    """Count only the largest 3D component of each series; masks/ keeps what the model said. Fixed for a run folder."""
    min_volume_ml: float | None = None
    """Leave out 3D components smaller than this, in ml; masks/ keeps what the model said. Fixed for a run folder."""
    max_quarantined: float = 0.01
    """Share of slices that may end in quarantine before the exit code becomes 3."""
    retry_failed: bool = False
    """Do the shards that have slices in quarantine anew, but for those with blank ones alone."""
    dry_run: bool = False
    """Look at archive, checkpoint and run folder, say what would be done, and end; nothing is written."""
    gpu: bool = False
    """Demand a GPU for each actor. Default: GPUs if the cluster has any."""
    cpu: bool = False
    """Segment on CPUs even where there are GPUs."""

    def __post_init__(self) -> None:
        self._resolve("archive", "checkpoint", "output")
        self._check_device(self.gpu, self.cpu)
        if self.workers is not None:
            parse_workers(self.workers)
        _require(self.batch_size is None or self.batch_size >= 1, f"--batch-size must be 1 or more, got {self.batch_size}")
        _require(
            self.threshold is None or 0 < self.threshold < 1,
            f"--threshold must lie between 0 and 1, got {self.threshold}",
        )
        _require(self.shard_slices >= 1, f"--shard-slices must be 1 or more, got {self.shard_slices}")
        _require(
            self.min_volume_ml is None or (math.isfinite(self.min_volume_ml) and self.min_volume_ml > 0),
            f"--min-volume-ml must be greater than 0, got {self.min_volume_ml}",
        )
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
