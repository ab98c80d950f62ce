"""A training in which the second worker cannot read the archive."""

import time
from pathlib import Path
from typing import Any

from segmodel.core.errors import ArchiveError


def train_with_a_bad_disk(task: dict[str, Any]) -> None:
    """What each worker runs; the first one then waits for the second in a collective."""
    import ray.train

    from segmodel.training import worker as training_worker
    from segmodel.training import worker_setup
    from segmodel.training.task import WorkerTask

    def broken(uri: str) -> None:
        Path(f"{task['config'].output}-raised").write_text(str(time.time()))
        raise ArchiveError("part-00000: Input/output error")

    if ray.train.get_context().get_world_rank() == 1:
        worker_setup.Archive = broken  # type: ignore[assignment,misc]
    training_worker.run_training(WorkerTask(**task))
