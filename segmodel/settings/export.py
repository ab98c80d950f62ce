"""The settings of jobs.export."""

from dataclasses import dataclass
from typing import Literal

from segmodel.settings.base import TrackedConfig, check_spacing, refuse_inputs_folder, require


@dataclass(frozen=True, kw_only=True)
class ExportConfig(TrackedConfig):
    """Settings of jobs.export."""

    format: Literal["nifti", "dicom-seg", "onnx"]
    """nifti, dicom-seg: masks on the grid of the source. onnx: the network of a checkpoint."""
    output: str
    """Folder for the files and their table; for onnx the file."""
    archive: str | None = None
    """Archive that was segmented (nifti, dicom-seg)."""
    segmentation: str | None = None
    """Run folder of a finished jobs.segment (nifti, dicom-seg)."""
    checkpoint: str | None = None
    """Checkpoint, or output folder of a training (onnx)."""
    patients: tuple[str, ...] = ()
    """Ids of patients to export; by default all."""
    dicom_source: str | None = None
    """Folder of the DICOM files, if they moved since the ingest (dicom-seg)."""
    with_images: bool = False
    """Also write the channels of the archive (nifti)."""
    spacing_mm: tuple[float, float, float] | None = None
    """Voxel spacing in mm of an archive that has none (nifti)."""
    max_rejected: float = 0.01
    """Share of series that could not be exported (0 to 1) above which the exit code is 3."""
    overwrite: bool = False
    """Replace an earlier export."""

    def __post_init__(self) -> None:
        file = "output" if self.format == "onnx" else None
        places = ("archive", "segmentation", "checkpoint", "dicom_source", "output")
        self._resolve(*places, file=file)
        object.__setattr__(self, "patients", tuple(self.patients))
        self._check_flags_of_format()
        refuse_inputs_folder(self.output, archive=self.archive, segmentation=self.segmentation)
        require("" not in self.patients, "--patients must name patients, got an empty id")
        if self.spacing_mm is not None:
            object.__setattr__(self, "spacing_mm", tuple(self.spacing_mm))
            check_spacing(self.spacing_mm)
        require(
            0 <= self.max_rejected <= 1,
            f"--max-rejected is a share, 0 to 1, got {self.max_rejected}",
        )

    def _check_flags_of_format(self) -> None:
        """Require the flags of this format, and refuse those that have no effect with it."""
        needed: tuple[str, ...] = ("archive", "segmentation")
        foreign: tuple[str, ...] = ("checkpoint", "dicom_source")
        if self.format == "dicom-seg":
            foreign = ("checkpoint", "with_images", "spacing_mm")
        elif self.format == "onnx":
            foreign = (*needed, "patients", "with_images", "spacing_mm", "track_patients")
            foreign = (*foreign, "dicom_source")
            needed = ("checkpoint",)
        for name in needed:
            require(getattr(self, name) is not None, f"--format {self.format} needs --{name}")
        for name in foreign:
            flag = name.replace("_", "-")
            require(
                getattr(self, name) in (None, False, ()),
                f"--{flag} does not go with --format {self.format}: leave it out",
            )
        require(
            self.format != "onnx" or self.tracking != "tensorboard",
            "--tracking tensorboard does not go with --format onnx, which records nothing: leave "
            "it out",
        )
