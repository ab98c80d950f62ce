"""Messages from the workers of a segmentation to the driver."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ShardProgress:
    """How much of a shard is done."""

    shard: str
    slices: int
    """Done in all, quarantined ones included."""
    quarantined: int


@dataclass(frozen=True)
class WorkerDied:
    """A shard is begun again because the worker that had it died."""

    shard: str
    attempt: int
    """The one that begins now; 2 is the first repetition."""


@dataclass(frozen=True)
class GpuFailed:
    """A GPU failed; its worker ends and Ray starts another one."""

    reason: str
    node: str


@dataclass(frozen=True)
class WorkerFailed:
    """A worker met an error that ends the job."""

    reason: str
    node: str


Message = ShardProgress | WorkerDied | GpuFailed | WorkerFailed
