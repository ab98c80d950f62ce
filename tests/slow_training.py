"""python -m tests.slow_training FLAGS: jobs.train, with time after each epoch for somebody to kill it.

Once a file of the name `hurry` lies in the output folder, it takes no more time than it needs.
"""

import sys
import time
from pathlib import Path
from typing import Any

from jobs import train
from segmodel import training
from segmodel.learner import Learner
from segmodel.metrics import EpochResult

PAUSE_S = 3.0


def train_slowly(task: dict[str, Any]) -> None:
    """What each worker runs; the others wait for the first one."""
    from segmodel import trainloop, trainwriter

    epoch = trainwriter.Writer.epoch

    def then_pause(self: trainwriter.Writer, result: EpochResult, learn: Learner) -> None:
        epoch(self, result, learn)
        end = time.monotonic() + PAUSE_S
        while time.monotonic() < end and not (Path(self.config.output) / "hurry").exists():
            time.sleep(0.05)

    trainwriter.Writer.epoch = then_pause  # type: ignore[method-assign]
    trainloop.run_training(trainwriter.WorkerTask(**task))


if __name__ == "__main__":
    training._train_loop = train_slowly
    sys.exit(train.main(sys.argv[1:]))
