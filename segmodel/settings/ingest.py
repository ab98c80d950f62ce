"""The settings of jobs.ingest."""

from dataclasses import dataclass
from typing import Literal

from segmodel.core.errors import ConfigError
from segmodel.settings.base import TrackedConfig, check_spacing, require


@dataclass(frozen=True, kw_only=True)
class IngestConfig(TrackedConfig):
    """Settings of jobs.ingest."""

    archive: str
    """Folder of the archive to write."""
    format: Literal["lgg", "nifti", "dicom", "phantom"]
    """Format of the raw scans. lgg: LGG data set, *_mask.tif; phantom: simulated patients."""
    source: str | None = None
    """Folder of the raw scans; not needed for phantom."""
    spacing_mm: tuple[float, float, float] | None = None
    """Voxel spacing in mm if the source has none (lgg, phantom); without it no volumes."""
    overwrite: bool = False
    """Replace an existing archive, once the new one is complete."""
    append: bool = False
    """Add new patients and studies to an archive; known ones stay unchanged."""
    dry_run: bool = False
    """Print which series would be taken or left out; write nothing."""
    max_rejected: float = 0.01
    """Share of patients without usable data above which the exit code is 3."""
    channels: tuple[str, ...] = ("pre-contrast", "FLAIR", "post-contrast")
    """Channels of the archive. FLAIR, else the first, is required and fills missing ones."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Percentiles of non-zero voxels that become 0 and 255."""
    any_plane: bool = False
    """Also take thick slices that are not axial."""
    layout: Literal["auto", "brats", "decathlon", "nnunet", "bids"] = "auto"
    """How the data set names its files (nifti)."""
    sequences: tuple[str, ...] = ()
    """File patterns of the sequences in another layout, such as FLAIR=*flair* (nifti)."""
    mask: str | None = None
    """File pattern of the masks, with --sequences (nifti)."""
    tumor_labels: str | None = None
    """Mask labels that are tumor, such as 1,2,4; by default all except 0 (nifti)."""
    assume_axes: str | None = None
    """Axis directions for files without orientation, such as RAS (nifti)."""
    series_rules: str | None = None
    """YAML file of rules that choose the series; by default the built-in ones (dicom)."""
    hash_ids: bool = False
    """Replace patient ids with an HMAC; the secret is in SEGMODEL_HASH_KEY (dicom)."""
    phantom_patients: int = 12
    """Number of patients to make."""
    phantom_slices: int = 20
    """Number of slices of each patient."""
    phantom_size: int = 96
    """Height and width of a slice."""
    seed: int = 0
    """Seed of the phantoms."""

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
        """Check the settings of NIfTI and DICOM."""
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
        self._check_axes()
        _ = self.labels
        self._refuse_other_formats()

    def _check_axes(self) -> None:
        if self.assume_axes is None:
            return
        object.__setattr__(self, "assume_axes", self.assume_axes.upper())
        pairs = sorted("LR" if c in "LR" else "AP" if c in "AP" else "IS" for c in self.assume_axes)
        require(
            len(self.assume_axes) == 3
            and set(self.assume_axes) <= set("LRAPIS")
            and pairs == ["AP", "IS", "LR"],
            f"--assume-axes takes three directions such as RAS or LPS, got {self.assume_axes!r}",
        )

    def _refuse_other_formats(self) -> None:
        """Refuse settings that have no effect with this format."""
        foreign = {
            "nifti": ("layout", "sequences", "mask", "tumor_labels", "assume_axes"),
            "dicom": ("series_rules", "hash_ids"),
        }
        for owner, names in foreign.items():
            for name in names:
                given = getattr(self, name) not in (None, False, (), "auto")
                require(
                    self.format == owner or not given,
                    f"--{name.replace('_', '-')} goes with --format {owner}, not with "
                    f"{self.format}",
                )
        require(
            self.spacing_mm is None or self.format in ("lgg", "phantom"),
            f"--spacing-mm: {self.format} files contain their spacing; leave it out",
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
