"""What a worker of a training works on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from fastai.learner import Learner

from segmodel.archive.annotations import SliceRows
from segmodel.data.dataset import SliceDataset
from segmodel.data.splits import Split
from segmodel.inference.precision import Precision
from segmodel.models.checkpoint import ModelCard, TrainerState
from segmodel.runtime.messages import MessageQueue
from segmodel.settings.training import RecipeConfig
from segmodel.storage.folder_lock import WorkerLease
from segmodel.training import output
from segmodel.training.distributed import WorkerContext

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What the driver gives every worker."""

    config: RecipeConfig
    rows: SliceRows
    """All annotated slices of the archive."""
    split: Split
    queue: MessageQueue
    """Where messages to the driver go."""
    threads: int | None
    """CPU threads for torch; None leaves its default."""
    lease: WorkerLease
    """On the output folder."""

    def publish(self, write: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Call `write`, which publishes files, if the output folder still belongs to this job.

        Raises:
            LeaseLostError: another job has the folder; nothing is written.
            DiskFullError: no space is left.
        """
        self.lease.check()
        with output.explain_full_disk(self.config):
            return write(*arguments)


@dataclass(frozen=True)
class Worker:
    """One worker, ready to train."""

    task: WorkerTask
    context: WorkerContext
    learner: Learner
    train: SliceDataset
    valid: SliceDataset
    card: ModelCard
    state: TrainerState | None
    """Of the last whole epoch; None at the beginning."""
    precision: Precision
    """Of the forward pass."""

    @property
    def first(self) -> bool:
        """Whether this is the worker that writes."""
        return self.context.rank == 0
