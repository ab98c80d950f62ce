"""What a segmentation prints and tracks of its workers' messages."""

from segmodel.core.progress import Progress, say
from segmodel.runtime.tracker import Tracker
from segmodel.segmentation.messages import (
    GpuFailed,
    Message,
    ShardProgress,
    WorkerDied,
    WorkerFailed,
)


class Console:
    """The driver's side: prints and tracks what the workers say of their shards.

    Args:
        slices: that are to be done.
        tracker: is told the speed.
    """

    def __init__(self, slices: int, tracker: Tracker) -> None:
        self.progress, self.tracker = Progress(slices, "slices"), tracker
        self.slices: dict[str, int] = {}
        self.quarantined, self.tracked, self.failure = 0, 0, ""

    def handle(self, message: Message) -> None:
        """Print or count what one message says."""
        match message:
            case WorkerDied(shard, attempt):
                say(f"shard {shard}: its worker died; attempt {attempt}")
            case GpuFailed(reason, node):
                say(f"a GPU of {node} failed; its worker ends and another begins: {reason}")
            case WorkerFailed(reason, node):
                self.failure = self.failure or f"{reason} (on node {node})"
            case ShardProgress():
                self._count(message)

    def _count(self, message: ShardProgress) -> None:
        self.quarantined += message.quarantined
        # A shard begins again after a death: what the dead worker did no longer counts.
        more = message.slices - self.slices.get(message.shard, 0)
        self.slices[message.shard] = message.slices
        self.progress.advance(more, f"{self.quarantined:,} quarantined" if self.quarantined else "")
        if self.progress.done > self.tracked:
            self.tracked = self.progress.done
            self.tracker.append(
                "progress/slices_per_second", self.progress.rate, self.progress.done
            )
