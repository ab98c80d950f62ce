"""What can go wrong, and the exit code of a job that it ends.

SegmodelError                 1  the job failed
├── RequestError              2  the request cannot be carried out
│   ├── ConfigError              a flag or a configuration file
│   ├── SourceError              the raw scans
│   ├── ArchiveError             the Parquet archive
│   ├── CheckpointError          the model's folder
│   ├── FingerprintError         a run folder that belongs to other settings
│   └── LeaseError               a run folder that another job works in
├── LeaseLostError            1  another job took over the run folder
├── DiskFullError             1  no space is left on the disk of the results
├── GeometryError             1  a volume or distance that cannot be computed
├── ExportError               1  an exported file that differs from its source
├── SegmentationError         1  segmentation failed
└── TrainingError             1  training failed
"""


class SegmodelError(Exception):
    """Base of every error that this package raises on purpose; its message says what to do next."""

    exit_code = 1


class RequestError(SegmodelError):
    """The request cannot be carried out as it was given."""

    exit_code = 2


class ConfigError(RequestError):
    """A flag or a key of a configuration file has a value that cannot be used."""


class SourceError(RequestError):
    """The raw scans are missing or are not what the request says."""


class ArchiveError(RequestError):
    """The archive is missing, unfinished or breaks the format."""


class CheckpointError(RequestError):
    """The checkpoint is missing, damaged or made for something else."""


class FingerprintError(RequestError):
    """The run folder was begun with another model, archive or setting."""


class LeaseError(RequestError):
    """Another job works in the run folder."""


class LeaseLostError(SegmodelError):
    """Another job took over the run folder while this one was silent."""


class DiskFullError(SegmodelError):
    """No space is left on the disk that results are written to."""


class GeometryError(SegmodelError):
    """A length or volume cannot be computed from what is known."""


class ExportError(SegmodelError):
    """What an export would write differs from its source."""


class SegmentationError(SegmodelError):
    """Segmentation started and could not be finished."""


class TrainingError(SegmodelError):
    """Training started and could not be finished."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
