"""Messages from the workers of a training or a range test to the driver."""

from dataclasses import dataclass

from segmodel.core.dice import EpochResult, Step


@dataclass(frozen=True)
class WorkerFailed:
    """A worker met an error; Ray Train ends the other workers."""

    error: Exception
    node: str
    """Host name."""


@dataclass(frozen=True, kw_only=True)
class DataReady:
    """All workers have their slices and the network."""

    train_slices: int
    valid_slices: int
    parameters: int
    workers: int
    device: str
    precision: str
    streamed: bool
    """Whether the slices are read from the archive in every epoch."""
    each: tuple[int, ...]
    """Slices of one pass, for each worker."""


@dataclass(frozen=True)
class RangeTestStarted:
    """The learning-rate range test begins."""

    steps: int


@dataclass(frozen=True)
class RangeTestStep:
    """Progress of the range test."""

    step: int


@dataclass(frozen=True)
class RangeTestDone:
    """The range test has found a learning rate."""

    rows: tuple[dict[str, float], ...]
    """Of lr_find.csv."""
    suggestion: float


@dataclass(frozen=True, kw_only=True)
class TrainingStarted:
    """The workers begin to train, or go on after a restart."""

    steps: int
    """Of the whole training."""
    steps_done: int
    cycles: tuple[tuple[int, float], ...]
    """(epochs, peak learning rate) of each 1cycle."""
    history: tuple[EpochResult, ...]
    """Of the epochs done."""
    best_sha256: str
    """Of the weights, if the last epoch done is the best; else empty."""
    last_steps: tuple[Step, ...]
    """Of the last epoch done."""


@dataclass(frozen=True)
class StepsDone:
    """Steps since the last message."""

    steps: tuple[Step, ...]


@dataclass(frozen=True)
class EpochDone:
    """An epoch is trained, validated and saved."""

    result: EpochResult
    best_sha256: str
    """Of the weights, if the epoch is the best so far; else empty."""


@dataclass(frozen=True)
class TrainingDone:
    """All epochs are done."""

    peak_memory_mb: float


Message = (
    WorkerFailed
    | DataReady
    | RangeTestStarted
    | RangeTestStep
    | RangeTestDone
    | TrainingStarted
    | StepsDone
    | EpochDone
    | TrainingDone
)
