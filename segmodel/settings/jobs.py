"""The settings of each job: frozen, documented field by field, checked once."""

import math
import os
import re
from dataclasses import dataclass
from typing import Literal

from segmodel.core.errors import ConfigError

Tracking = Literal["neptune", "tensorboard", "none"]
SIZE_MULTIPLE = 32
"""Both U-Nets halve a slice up to five times: what enters them has sides that are multiples of this."""


_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/")
_SUPPORTED = ("s3://", "file://")
_JOB_COPY = re.compile(r"^(?P<copy>.*/runtime_resources/working_dir_files/[^/]+)(/|$)")
"""Where Ray puts its copy of the folder that `ray job submit --working-dir` uploads."""


def absolute_uri(uri: str) -> str:
    """The same place, named so that a process with another working directory finds it too.

    Raises:
        ConfigError: a URI of a store that is not supported.
    """
    if _SCHEME.match(uri) or "://" in uri:
        bucket = uri.removeprefix("s3://").split("/")[0]
        if not uri.startswith(_SUPPORTED) or "::" in uri or not bucket:
            raise ConfigError(
                f"{uri!r} is neither a path nor a URI that is supported: give a path such as "
                "/data/archive, or s3://bucket/folder (in small letters)"
            )
        return uri.rstrip("/")
    return os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111 - also takes out "..", as Path does not


def refuse_job_copy(flag: str, uri: str) -> None:
    """Refuse a folder in Ray's copy of a submitted job's working directory.

    Raises:
        ConfigError: the folder lies there; results would go with the copy when the job ends.
    """
    if _JOB_COPY.match(uri):
        raise ConfigError(
            f"{flag} {uri} lies in Ray's copy of the submitted folder, which is deleted after the job: give an "
            "absolute path on a disk that all nodes share, such as /data/runs/tonight, or "
            "s3://bucket/runs/tonight"
        )


def require(ok: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `ok`."""
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What every job takes."""

    tracking: Tracking = "neptune"
    """Also write metrics for this viewer; neptune can send them to your own server."""
    track_patients: bool = False
    """Also send paths, pictures, volumes and the console's text to a server."""

    def _resolve(self, *names: str) -> None:
        for name in names:
            uri = getattr(self, name)
            require(uri != "", f"--{name} must name a folder, got an empty text")
            if uri is not None:
                uri = absolute_uri(uri)
                if name != "source":
                    refuse_job_copy(f"--{name}", uri)
                object.__setattr__(self, name, uri)

    def _check_device(self, gpu: bool, cpu: bool) -> None:
        require(
            not (gpu and cpu), "--gpu and --cpu contradict each other: give one of them, or neither"
        )


@dataclass(frozen=True, kw_only=True)
class IngestConfig(JobConfig):
    """Settings of jobs.ingest."""

    archive: str
    """Archive to write."""
    format: Literal["lgg", "nifti", "dicom", "phantom"]
    """lgg: folders of patients with *_mask.tif; phantom: made here."""
    source: str | None = None
    """Folder of the raw scans; phantom needs none."""
    spacing_mm: tuple[float, float, float] | None = None
    """Voxel spacing in mm where the source has none; without it no volumes."""
    overwrite: bool = False
    """Replace an archive that is already there, once the new one is whole."""
    append: bool = False
    """Add new patients to an archive; known ones are counted and left."""
    dry_run: bool = False
    """Print which series would be taken or left out; write nothing."""
    max_rejected: float = 0.01
    """Share of patients without usable data above which the exit code is 3."""
    channels: tuple[str, ...] = ("pre-contrast", "FLAIR", "post-contrast")
    """Sequences that become channels. FLAIR, or else the first, is required and replaces missing ones."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Percentiles of non-zero voxels that become 0 and 255."""
    any_plane: bool = False
    """Also take thick slices that are not axial."""
    layout: Literal["auto", "brats", "decathlon", "nnunet", "bids"] = "auto"
    """How the data set names its files (nifti)."""
    sequences: tuple[str, ...] = ()
    """Files of each sequence in any other layout, as FLAIR=*flair* (nifti)."""
    mask: str | None = None
    """File pattern of the masks, with --sequences (nifti)."""
    tumor_labels: str | None = None
    """Mask labels that are tumor, as 1,2,4; all but 0 by default (nifti)."""
    assume_axes: str | None = None
    """Axis directions of files without orientation, as RAS (nifti)."""
    series_rules: str | None = None
    """YAML file of rules that choose series, instead of ours (dicom)."""
    hash_ids: bool = False
    """Replace patient ids by an HMAC, secret in SEGMODEL_HASH_KEY (dicom)."""
    phantom_patients: int = 12
    """Patients to make."""
    phantom_slices: int = 20
    """Slices of each patient."""
    phantom_size: int = 96
    """Height and width of a slice."""
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
            check_spacing(self.spacing_mm)
        self._check_scans()
        for name in ("phantom_patients", "phantom_slices"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} must be 1 or more, got {value}")
        require(
            self.phantom_size >= 32, f"--phantom-size must be 32 or more, got {self.phantom_size}"
        )
        require(self.seed >= 0, f"--seed must be 0 or more, got {self.seed}")

    def _check_scans(self) -> None:
        """What concerns NIfTI and DICOM."""
        for name in ("channels", "sequences", "percentiles"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        require(
            0 <= self.max_rejected <= 1,
            f"--max-rejected is a share, 0 to 1, got {self.max_rejected}",
        )
        require(
            bool(self.channels) and len(set(self.channels)) == len(self.channels),
            f"--channels takes one or more different names, got {' '.join(self.channels)}",
        )
        require(
            len(self.percentiles) == 2 and 0 <= self.percentiles[0] < self.percentiles[1] <= 100,
            f"--percentiles takes LOW < HIGH between 0 and 100, got {self.percentiles}",
        )
        require(
            self.mask is None or bool(self.sequences), "--mask goes with --sequences: give both"
        )
        if self.assume_axes is not None:
            object.__setattr__(self, "assume_axes", self.assume_axes.upper())
            pairs = sorted(
                "LR" if c in "LR" else "AP" if c in "AP" else "IS" for c in self.assume_axes
            )
            require(
                len(self.assume_axes) == 3
                and set(self.assume_axes) <= set("LRAPIS")
                and pairs == ["AP", "IS", "LR"],
                f"--assume-axes takes three directions such as RAS or LPS, got {self.assume_axes!r}",
            )
        _ = self.labels
        foreign = {
            "nifti": ("layout", "sequences", "mask", "tumor_labels", "assume_axes"),
            "dicom": ("series_rules", "hash_ids"),
        }
        for owner, names in foreign.items():
            for name in names:
                given = getattr(self, name) not in (None, False, (), "auto")
                require(
                    self.format == owner or not given,
                    f"--{name.replace('_', '-')} goes with --format {owner}, not with {self.format}",
                )
        require(
            self.spacing_mm is None or self.format in ("lgg", "phantom"),
            f"--spacing-mm: {self.format} files say their spacing themselves; leave it out",
        )

    @property
    def labels(self) -> tuple[int, ...] | None:
        """`tumor_labels` as numbers."""
        if self.tumor_labels is None:
            return None
        try:
            return tuple(int(text) for text in self.tumor_labels.split(","))
        except ValueError:
            raise ConfigError(
                f"--tumor-labels takes whole numbers such as 1,2,4, got {self.tumor_labels!r}"
            ) from None


def check_spacing(spacing_mm: tuple[float, ...]) -> None:
    """Raise ConfigError unless a value of --spacing-mm is three lengths."""
    require(
        len(spacing_mm) == 3 and all(math.isfinite(mm) and mm > 0 for mm in spacing_mm),
        f"--spacing-mm takes three lengths greater than 0, got {spacing_mm}",
    )


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
    """Archive to segment."""
    checkpoint: str
    """Checkpoint, or output folder of a training (its best/ is taken)."""
    output: str
    """Run folder that all nodes share; an unfinished run there continues."""
    workers: str | None = None
    """Actors; by default one a GPU, without GPUs one a machine."""
    batch_size: int | None = None
    """Slices in a forward pass, halved if memory is short; by default 128 on a GPU, 32 on CPUs."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile. auto: on GPUs from 20,000 slices on."""
    threshold: float | None = None
    """A pixel is tumor above this; by default the checkpoint's value."""
    shard_slices: int = 512
    """Slices in a shard, the unit of work. Fixed for a run."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on GPUs, and on CPUs where it is faster. Fixed for a run."""
    tta: bool = False
    """Average over three mirror images too, at 4 times the cost. Fixed for a run."""
    keep_largest: bool = False
    """Count only the largest 3D component of each series; masks/ keeps all."""
    min_volume_ml: float | None = None
    """Leave out 3D components that are smaller; masks/ keeps all."""
    max_quarantined: float = 0.01
    """Share of non-blank slices in quarantine above which the exit code is 3."""
    retry_failed: bool = False
    """Re-run shards with slices in quarantine, unless all those are blank."""
    dry_run: bool = False
    """Check the inputs and print what would be done; write nothing."""
    gpu: bool = False
    """Demand a GPU for each actor; without it GPUs are used if there are any."""
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
        _check_min_volume(self.min_volume_ml)
        require(
            0 <= self.max_quarantined <= 1,
            f"--max-quarantined is a share, 0 to 1, got {self.max_quarantined}",
        )


@dataclass(frozen=True, kw_only=True)
class SummarizeConfig(JobConfig):
    """Settings of jobs.summarize."""

    segmentation: str
    """Run folder of a finished jobs.segment."""
    keep_largest: bool = False
    """Count only the largest 3D component of each series; masks/ keeps all."""
    min_volume_ml: float | None = None
    """Leave out 3D components that are smaller; masks/ keeps all."""

    def __post_init__(self) -> None:
        self._resolve("segmentation")
        _check_min_volume(self.min_volume_ml)


def _check_min_volume(ml: float | None) -> None:
    require(
        ml is None or (math.isfinite(ml) and ml > 0),
        f"--min-volume-ml must be greater than 0, got {ml}",
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(JobConfig):
    """Settings of jobs.evaluate."""

    archive: str
    """Archive with masks of annotators."""
    segmentation: str
    """Run folder of jobs.segment; several, with commas, are compared with the first."""
    output: str
    """Folder for tables and report."""
    tolerance_mm: float = 1.0
    """Tolerance of the surface Dice; in voxels where spacing is unknown."""
    overwrite: bool = False
    """Replace an evaluation that is already there."""

    def __post_init__(self) -> None:
        self._resolve("archive", "output")
        runs = [absolute_uri(run.strip()) for run in self.segmentation.split(",") if run.strip()]
        require(bool(runs), "--segmentation must name a run folder")
        require(len(set(runs)) == len(runs), "--segmentation names one folder twice")
        for run in runs:
            refuse_job_copy("--segmentation", run)
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
class ReportConfig(JobConfig):
    """Settings of jobs.report."""

    run: str
    """Output folder of a finished jobs.segment, jobs.evaluate or jobs.train."""
    without_pictures: bool = False
    """Leave the patients' pictures out of the page."""

    def __post_init__(self) -> None:
        self._resolve("run")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(JobConfig):
    """Settings of jobs.demo."""

    output: str = "demo-output"
    """Local folder for all that the demo makes; an earlier demo is replaced."""
    seed: int = 0
    """Seed of the patients and the training."""

    def __post_init__(self) -> None:
        self._resolve("output")
        require(
            "://" not in self.output,
            f"--output of the demo must be a local folder, got {self.output}",
        )
        require(self.seed >= 0, f"--seed must be 0 or more, got {self.seed}")
