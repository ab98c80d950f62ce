"""The settings of the jobs that train: frozen, documented field by field, checked once."""

import math
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal

from segmodel.settings.base import (
    SIZE_MULTIPLE,
    TrackedConfig,
    absolute_uri,
    parse_workers,
    refuse_inputs_folder,
    refuse_job_copy,
    require,
)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(TrackedConfig):
    """Settings shared by trainings and learning-rate range tests: data, network, one step."""

    archive: str
    """Archive with annotated patients."""
    output: str
    """Folder for all results, on a disk that all nodes share or on S3."""
    arch: Literal["dynamic", "classical"] = "dynamic"
    """fastai's DynamicUnet with a ResNet encoder, or the classical U-Net."""
    encoder: Literal["resnet18", "resnet34", "resnet50"] = "resnet34"
    """ResNet encoder of the dynamic network."""
    encoder_weights: str = "imagenet"
    """imagenet, none, or a torchvision file (.safetensors, .pth)."""
    dropout: float = 0.0
    """Dropout after the two deepest levels of the classical network, 0 to 1."""
    width: int = 64
    """Channels of the classical network's first level; each level doubles them."""
    image_size: int = 256
    """Longest side of a slice in the network, a multiple of 32."""
    loss: Literal["ce+dice", "ce"] = "ce+dice"
    """Cross-entropy plus soft Dice over the batch, or cross-entropy alone."""
    weight_decay: float = 1e-2
    """Decoupled weight decay."""
    batch_size: int = 16
    """Slices in a step, over all workers together."""
    accumulate: int = 1
    """Forward passes in a step, to save memory; Dice loss is then per pass."""
    clip_norm: float = 1.0
    """Largest norm of a gradient; larger ones are scaled down. 0: off."""
    max_rotation: float = 15.0
    """Largest random rotation of a slice in degrees, in either direction."""
    max_zoom: float = 1.0
    """Largest factor of random enlarging or shrinking. 1: off."""
    max_gain: float = 1.3
    """Largest factor of random brightening or darkening. 1: off."""
    missing_sequences: float = 0.25
    """Share of slices (0 to 1) that get FLAIR in all channels."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format. auto: bf16 on GPUs, and on CPUs if it is faster."""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """Memory layout of tensors; channels_last is usually faster."""
    compile: bool = False
    """Use torch.compile: takes minutes once, then steps are faster on a GPU."""
    sync_batchnorm: bool = False
    """Batch norm over the slices of all workers; GPUs only."""
    data: Literal["auto", "memory", "stream"] = "auto"
    """Where slices are kept. auto: in memory, if at most half is filled."""
    mixed_sizes: bool = False
    """Accept slices of several sizes; each is scaled to the image size."""
    workers: str = "1"
    """Data-parallel workers, each with a GPU or CPUs. MIN:MAX: as many as fit."""
    gpu: bool = False
    """Require a GPU for each worker; by default GPUs are used if there are any."""
    cpu: bool = False
    """Train on CPUs even if there are GPUs."""
    overwrite: bool = False
    """Replace the results of an earlier job in the output folder."""
    seed: int = 0
    """Seed of split, weights, order of slices and augmentation."""

    def __post_init__(self) -> None:
        self._resolve("archive", "output")
        refuse_inputs_folder(self.output, archive=self.archive)
        if self.encoder_weights not in ("", "imagenet", "none"):
            object.__setattr__(self, "encoder_weights", absolute_uri(self.encoder_weights))
        self._check_device(self.gpu, self.cpu)
        self._check_network()
        self._check_optimisation()
        self._check_batches()
        require(self.seed >= 0, f"--seed must be 0 or more, got {self.seed}")

    def _check_network(self) -> None:
        require(
            self.image_size >= SIZE_MULTIPLE and self.image_size % SIZE_MULTIPLE == 0,
            f"--image-size must be a multiple of {SIZE_MULTIPLE}, got {self.image_size}",
        )
        require(
            0 <= self.dropout < 1, f"--dropout must be at least 0 and below 1, got {self.dropout}"
        )
        require(self._has_classical or self.dropout == 0, "--dropout is for --arch classical")
        require(self.width >= 1, f"--width must be 1 or more, got {self.width}")
        require(
            self._has_classical or self.width == RecipeConfig.width,
            "--width is for --arch classical",
        )

    def _check_optimisation(self) -> None:
        for name in ("weight_decay", "clip_norm", "max_rotation"):
            value = getattr(self, name)
            require(
                math.isfinite(value) and value >= 0,
                f"--{name.replace('_', '-')} must be 0 or more, got {value}",
            )
        for name in ("max_zoom", "max_gain"):
            value = getattr(self, name)
            require(
                math.isfinite(value) and value >= 1,
                f"--{name.replace('_', '-')} is a factor, 1 or more, got {value}",
            )
        require(
            0 <= self.missing_sequences <= 1,
            f"--missing-sequences is a share, 0 to 1, got {self.missing_sequences}",
        )

    def _check_batches(self) -> None:
        require(
            not (self.sync_batchnorm and self.cpu),
            "--sync-batchnorm works on GPUs only: leave it or --cpu out",
        )
        require(self.accumulate >= 1, f"--accumulate must be 1 or more, got {self.accumulate}")
        most = parse_workers(self.workers)[1]
        require(
            self.batch_size >= most * self.accumulate,
            f"--batch-size counts the slices of all workers: {self.batch_size} cannot be shared by "
            f"{most} workers in {self.accumulate} passes",
        )
        require(
            self.batch_size % self.accumulate == 0,
            f"--accumulate {self.accumulate} must divide --batch-size {self.batch_size}: all "
            "passes of a step have the same size",
        )
        require(
            not self._has_dynamic
            or self.image_size > SIZE_MULTIPLE
            or self.batch_size // self.accumulate >= 2 * most,
            f"--image-size {self.image_size} leaves one pixel a slice at the encoder's end, where "
            "batch norm needs two slices of each worker in a pass: give a larger --image-size or "
            "--batch-size",
        )

    @property
    def _has_classical(self) -> bool:
        return self.arch == "classical"

    @property
    def _has_dynamic(self) -> bool:
        return self.arch == "dynamic"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RecipeConfig):
    """Settings of jobs.train."""

    epochs: int | list[int] = 20
    """Passes over the training slices. [5,20]: a 1cycle of 5, then one of 20."""
    lr: float | Literal["auto"] | list[float | Literal["auto"]] = 1e-3
    """Peak learning rate, or auto (range test). [5e-3,2e-3]: for each 1cycle."""
    resume: bool = False
    """Continue the training in the output folder after its last complete epoch."""
    max_failures: int = 3
    """Number of restarts from the last complete epoch after a worker died."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.cycles != (), "--epochs must name at least one number of epochs")
        for epochs in _listed(self.epochs):
            require(epochs >= 1, f"--epochs must be 1 or more, got {epochs}")
        for lr in _listed(self.lr):
            require(
                lr == "auto" or (math.isfinite(lr) and lr > 0),
                f"--lr must be greater than 0, got {lr}",
            )
        require(
            self.max_failures >= 0, f"--max-failures must be 0 or more, got {self.max_failures}"
        )
        require(
            not (self.resume and self.overwrite),
            "--resume and --overwrite contradict each other: give one of them",
        )

    @property
    def cycles(self) -> tuple[tuple[int, float | Literal["auto"]], ...]:
        """(epochs, peak learning rate) of each 1cycle, in their order.

        Raises:
            ConfigError: the two settings do not list equally many.
        """
        epochs, rates = _listed(self.epochs), _listed(self.lr)
        if len(rates) == 1:
            rates = rates * len(epochs)
        require(
            len(epochs) == len(rates),
            f"{len(rates)} values of --lr for {len(epochs)} of --epochs: give one --lr for each "
            "of --epochs, or one for all",
        )
        return tuple(zip(epochs, rates, strict=True))


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainConfig):
    """Settings of jobs.compare: those of jobs.train, for both networks."""

    HIDDEN: ClassVar = ("arch",)
    """Settings of jobs.train that have no meaning here."""

    _OF_CHECKPOINTS: ClassVar = (
        "checkpoints",
        "tracking",
        "track_patients",
        "gpu",
        "cpu",
        "overwrite",
        "resume",
        "precision",
        "mixed_sizes",
    )
    """Settings that a comparison of trained networks uses."""

    checkpoints: list[str] | None = None
    """Compare these checkpoints or trainings instead of training two networks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.arch == RecipeConfig.arch,
            "--arch is for a training: a comparison trains both networks; leave it out",
        )
        if self.checkpoints is not None:
            object.__setattr__(self, "checkpoints", [absolute_uri(uri) for uri in self.checkpoints])
            for uri in self.checkpoints:
                refuse_job_copy("--checkpoints", uri)
                refuse_inputs_folder(self.output, checkpoints=uri)
            require(len(self.checkpoints) >= 2, "--checkpoints takes two folders or more: [A, B]")
            self._refuse_unused()

    def _refuse_unused(self) -> None:
        """Refuse settings of a training where trained networks are compared."""
        given = [
            field.name
            for field in fields(self)
            if field.name not in self._OF_CHECKPOINTS
            and field.default is not MISSING
            and getattr(self, field.name) != field.default
        ]
        require(
            not given,
            f"--{(given or [''])[0].replace('_', '-')} is for a training, and --checkpoints names "
            "networks that are trained: leave one of them out",
        )

    @property
    def _has_classical(self) -> bool:
        return True

    @property
    def _has_dynamic(self) -> bool:
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
    """Number of steps; fewer if the loss diverges."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.lr_min < self.lr_max < math.inf,
            "--lr-min must be greater than 0 and below --lr-max, got "
            f"{self.lr_min} and {self.lr_max}",
        )
        require(self.steps >= 11, f"--steps must be 11 or more, got {self.steps}")
