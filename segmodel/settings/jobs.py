"""The settings of each job: frozen, documented field by field, checked once."""

import math
import os
from dataclasses import dataclass, field
from typing import Literal

from segmodel.core.errors import ConfigError

Tracking = Literal["neptune", "tensorboard", "none"]
SOURCE_FORMATS = ("lgg", "phantom")
ENCODERS = ("resnet18", "resnet34", "resnet50")
SIZE_MULTIPLE = 32
"""Both U-Nets halve a slice up to five times: what enters them has sides that are multiples of this."""


def absolute_uri(uri: str) -> str:
    """The same place, named so that a process with another working directory finds it too."""
    if "://" in uri:
        return uri.rstrip("/")
    return os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111 - also takes out "..", as Path does not


def require(ok: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `ok`."""
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What every job takes."""

    tracking: Tracking = "neptune"
    """Writes metrics and figures for a viewer too, into the output folder. neptune with NEPTUNE_API_TOKEN and NEPTUNE_PROJECT
    set: to a server of your own (Neptune's hosted service has closed)."""
    track_patients: bool = False
    """Also send to a server what names or shows patients: paths, pictures, volumes, the console's text."""

    def _resolve(self, *names: str) -> None:
        for name in names:
            uri = getattr(self, name)
            require(uri != "", f"--{name} must name a folder, got an empty text")
            if uri is not None:
                object.__setattr__(self, name, absolute_uri(uri))

    def _check_device(self, gpu: bool, cpu: bool) -> None:
        require(
            not (gpu and cpu), "--gpu and --cpu contradict each other: give one of them, or neither"
        )


@dataclass(frozen=True, kw_only=True)
class IngestConfig(JobConfig):
    """Settings of jobs.ingest."""

    archive: str
    """Folder of the archive to write: a path or an s3:// URI."""
    format: Literal["lgg", "phantom"]
    """Layout of the source: lgg (a folder a patient, NAME_<slice>.tif beside NAME_<slice>_mask.tif) or phantom (made here)."""
    source: str | None = None
    """Folder of the raw scans: a path or an s3:// URI. Not used by phantom."""
    spacing_mm: tuple[float, float, float] | None = field(
        default=None, metadata={"metavar": ("ROW", "COL", "SLICE")}
    )
    """Distance between voxel centres in mm, where the source does not tell; without it volumes stay null."""
    overwrite: bool = False
    """Replace an archive that is already there, once the new one is whole."""
    append: bool = False
    """Add new patients to an archive; those that it has already are counted. A segmentation of it goes on with them."""
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
        require(
            self.format == "phantom" or self.source is not None,
            f"--format {self.format} needs --source: the folder of the scans",
        )
        require(
            self.format != "phantom" or self.source is None,
            "--format phantom makes its own patients: leave --source out",
        )
        require(
            not (self.append and self.overwrite),
            "--append and --overwrite contradict each other: give one of them, or neither",
        )
        if self.spacing_mm is not None:
            object.__setattr__(self, "spacing_mm", tuple(self.spacing_mm))
            require(
                len(self.spacing_mm) == 3
                and all(math.isfinite(mm) and mm > 0 for mm in self.spacing_mm),
                f"--spacing-mm takes three lengths greater than 0, got {self.spacing_mm}",
            )
        for name in ("phantom_patients", "phantom_slices"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} must be 1 or more, got {value}")
        require(
            self.phantom_size >= 32, f"--phantom-size must be 32 or more, got {self.phantom_size}"
        )
        require(self.seed >= 0, f"--seed must be 0 or more, got {self.seed}")


def parse_workers(text: str) -> tuple[int, int]:
    """(min, max) of `N` or `MIN:MAX`."""
    low, _, high = text.partition(":")
    try:
        bounds = int(low), int(high or low)
    except ValueError:
        raise ConfigError(f"--workers takes N or MIN:MAX, got {text!r}") from None
    require(
        1 <= bounds[0] <= bounds[1],
        f"--workers takes N or MIN:MAX with 1 <= MIN <= MAX, got {text!r}",
    )
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
        require(
            self.batch_size is None or self.batch_size >= 1,
            f"--batch-size must be 1 or more, got {self.batch_size}",
        )
        require(
            self.threshold is None or 0 < self.threshold < 1,
            f"--threshold must lie between 0 and 1, got {self.threshold}",
        )
        require(
            self.shard_slices >= 1, f"--shard-slices must be 1 or more, got {self.shard_slices}"
        )
        require(
            self.min_volume_ml is None
            or (math.isfinite(self.min_volume_ml) and self.min_volume_ml > 0),
            f"--min-volume-ml must be greater than 0, got {self.min_volume_ml}",
        )
        require(
            0 <= self.max_quarantined <= 1,
            f"--max-quarantined is a share, 0 to 1, got {self.max_quarantined}",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(JobConfig):
    """Settings of jobs.evaluate."""

    archive: str
    """Archive with masks of annotators: a path or an s3:// URI."""
    segmentation: str
    """Run folder of jobs.segment, or several with commas between them, which are then compared with the first."""
    output: str
    """Folder for the tables and the report: a path or an s3:// URI."""
    tolerance_mm: float = 1.0
    """Tolerance of the normalised surface Dice, in mm; in voxels where the spacing is unknown."""
    overwrite: bool = False
    """Replace an evaluation that is already there."""

    def __post_init__(self) -> None:
        self._resolve("archive", "output")
        runs = [absolute_uri(run.strip()) for run in self.segmentation.split(",") if run.strip()]
        require(bool(runs), "--segmentation must name a run folder")
        require(len(set(runs)) == len(runs), "--segmentation names one folder twice")
        object.__setattr__(self, "segmentation", ",".join(runs))
        require(
            math.isfinite(self.tolerance_mm) and self.tolerance_mm > 0,
            f"--tolerance-mm must be greater than 0, got {self.tolerance_mm}",
        )

    @property
    def segmentations(self) -> list[str]:
        """The run folders."""
        return self.segmentation.split(",")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(JobConfig):
    """Settings of jobs.demo."""

    output: str = "demo-output"
    """Folder for everything that the demo makes; what an earlier demo left there is replaced."""
    seed: int = 0
    """Of the patients and the training."""

    def __post_init__(self) -> None:
        self._resolve("output")
        require(
            "://" not in self.output,
            f"--output of the demo must be a local folder, got {self.output}",
        )
        require(self.seed >= 0, f"--seed must be 0 or more, got {self.seed}")
