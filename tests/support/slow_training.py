"""python -m tests.support.slow_training FLAGS

Runs jobs.train with a pause after each epoch, in which a test can kill it. A file `hurry` in the
output folder ends the pauses.
"""

import sys
import time
from pathlib import Path
from typing import Any

from jobs import train
from segmodel.core.dice import EpochResult
from segmodel.training import worker_group
from segmodel.training.learner import Learner

PAUSE_S = 3.0


def train_slowly(task: dict[str, Any]) -> None:
    """What each worker runs; the others wait for the first one."""
    from segmodel.training import recorder
    from segmodel.training import worker as training_worker
    from segmodel.training.task import WorkerTask

    epoch = recorder.TrainingRecorder.epoch

    def then_pause(self: recorder.TrainingRecorder, result: EpochResult, learn: Learner) -> None:
        epoch(self, result, learn)
        end = time.monotonic() + PAUSE_S
        while time.monotonic() < end and not (Path(self.config.output) / "hurry").exists():
            time.sleep(0.05)

    recorder.TrainingRecorder.epoch = then_pause  # type: ignore[method-assign]
    training_worker.run_training(WorkerTask(**task))


if __name__ == "__main__":
    worker_group._train_loop = train_slowly
    sys.exit(train.main(sys.argv[1:]))
