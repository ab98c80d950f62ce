"""The driver's side of a training: prints and tracks what the workers tell."""

import math
from collections.abc import Sequence

from segmodel.core.dice import EpochResult, Step
from segmodel.core.errors import SegmodelError
from segmodel.core.progress import Progress, StatusLine, format_duration
from segmodel.runtime.tracker import Tracker
from segmodel.training.messages import (
    DataReady,
    EpochDone,
    Message,
    RangeTestDone,
    RangeTestStarted,
    RangeTestStep,
    StepsDone,
    TrainingDone,
    TrainingStarted,
    WorkerFailed,
)

TABLE_HEADER = (
    "epoch  train loss  valid loss    Dice  by patient  with tumor  slices/s    time      left"
)
ESTIMATE_S = 30.0
"""In a log, where no status can be rewritten, an estimate is printed once after so many seconds."""


class Listener:
    """Handles messages of a range test, and those of a training before its first step."""

    def __init__(self, tracker: Tracker, status: StatusLine | None = None) -> None:
        self.tracker, self.status = tracker, status or StatusLine()
        self.progress: Progress | None = None
        self.failure: WorkerFailed | None = None
        self.suggestion: float | None = None

    def handle(self, message: Message) -> None:
        """Print, track or keep what one message says."""
        match message:
            case WorkerFailed():
                self._failed(message)
            case DataReady():
                self._data(message)
            case RangeTestStarted(steps):
                self.status.print("learning-rate range test")
                # On a terminal the status shows it; a log gets a line now and then.
                every = math.inf if self.status.terminal else None
                self.progress = Progress(steps, "steps", every, self.status.clock)
            case RangeTestStep(step):
                self._range_test_step(step)
            case RangeTestDone():
                self._range_test_done(message)
            case _:
                raise TypeError(f"no such message: {message!r}")

    def take_failure(self) -> WorkerFailed | None:
        """Return and forget the failure that ended the workers, if one reported it."""
        failure, self.failure = self.failure, None
        return failure

    def _failed(self, message: WorkerFailed) -> None:
        """Keep the first failure, or the first SegmodelError: others are its consequences."""
        if self.failure is None or (
            isinstance(message.error, SegmodelError)
            and not isinstance(self.failure.error, SegmodelError)
        ):
            self.failure = message

    def _data(self, message: DataReady) -> None:
        each = " + ".join(str(count) for count in message.each)
        self.status.print(
            f"{message.train_slices:,} slices to train on, {message.valid_slices:,} to validate "
            f"on, {'streamed from the archive' if message.streamed else 'in memory'}; "
            f"{message.parameters / 1e6:.1f} million parameters; workers: {message.workers}, on "
            f"{message.device}, {each} slices a pass, in {message.precision}"
        )
        values = {"parameters": message.parameters, "precision": message.precision}
        self.tracker.record("model", values)
        names = ("train_slices", "valid_slices", "streamed", "workers")
        self.tracker.record("data", {name: getattr(message, name) for name in names})

    def _range_test_step(self, step: int) -> None:
        if self.progress is not None:
            self.progress.advance(step - self.progress.done)
            self.status.show(f"range test: {self.progress.line()}")

    def _range_test_done(self, message: RangeTestDone) -> None:
        self.suggestion = message.suggestion
        self.status.print(
            f"suggested learning rate {self.suggestion:.2e}, after {len(message.rows)} steps"
        )
        self.tracker.record("lr_find", {"suggestion": self.suggestion})
        for number, row in enumerate(message.rows):
            for name, value in row.items():
                self.tracker.append(f"lr_find/{name}", value, number)


class TrainingListener(Listener):
    """Handles the messages of a training; `history` holds its epochs so far.

    It prints one table with a row an epoch. Between two rows, a terminal shows a status line with
    the time left; a log gets an estimate once, before the table.
    """

    def __init__(self, tracker: Tracker, status: StatusLine | None = None) -> None:
        super().__init__(tracker, status)
        self.begun = self.warm = False
        self.history: list[EpochResult] = []
        self.epochs = 0
        self.table_begun = False
        self.steps_tracked = 0
        self.peak_memory_mb = 0.0

    def handle(self, message: Message) -> None:
        """Print, track or keep what one message says."""
        match message:
            case TrainingStarted():
                self._begin(message)
            case StepsDone(steps):
                self._steps(steps)
            case EpochDone(result, best_sha256):
                self.history.append(result)
                self._report(result, best_sha256)
            case TrainingDone(peak_memory_mb):
                self.status.clear()
                self.peak_memory_mb = peak_memory_mb
            case _:
                super().handle(message)

    def _begin(self, message: TrainingStarted) -> None:
        history = list(message.history)
        self.epochs = sum(epochs for epochs, _ in message.cycles)
        self.steps_tracked = max(self.steps_tracked, 0 if self.begun else message.steps_done)
        self.progress = Progress(
            message.steps, "steps", math.inf, self.status.clock, message.steps_done
        )
        self.warm = False
        if self.begun:  # workers that died may have finished an epoch without saying so
            self._track(message.last_steps)
            for result in history[len(self.history) :]:
                self._report(result, message.best_sha256 if result is history[-1] else "")
        else:
            cycles = ", then ".join(
                f"{epochs} epochs at up to {lr:.2g}" for epochs, lr in message.cycles
            )
            self.status.print(f"1cycle: {cycles}")
        if history or self.history:
            self.status.print(f"going on after epoch {len(history)}")
        self.begun, self.history = True, history
        self.tracker.record("model", {"lr": ", ".join(f"{lr:.6g}" for _, lr in message.cycles)})

    def _steps(self, steps: Sequence[Step]) -> None:
        self._track(steps)
        if self.progress is None or not steps:
            return
        self.progress.advance(steps[-1].step - self.progress.done)
        if not self.warm:  # the first step is slow
            self.warm = True
            self.progress.restart()
        left, last = self.progress.left(), steps[-1]
        time_left = f", {left} left" if left else ""
        self.status.show(
            f"epoch {last.epoch} of {self.epochs}, step {last.step:,} of {self.progress.total:,}, "
            f"loss {last.loss:.3f}{time_left}"
        )
        if not (self.status.terminal or self.table_begun) and self.progress.seconds > ESTIMATE_S:
            epoch_s = self.progress.total / self.epochs / self.progress.rate
            self.status.print(f"an epoch takes about {format_duration(epoch_s)}; {left} left")
            self._begin_table()

    def _begin_table(self) -> None:
        if not self.table_begun:
            self.table_begun = True
            self.status.print(TABLE_HEADER)

    def _track(self, steps: Sequence[Step]) -> None:
        """Track each step once, even if a restart repeats it."""
        for step in steps:
            if step.step > self.steps_tracked:
                self.steps_tracked = step.step
                for name in ("loss", "lr", "momentum"):
                    self.tracker.append(f"train/step/{name}", getattr(step, name), step.step)

    def _report(self, result: EpochResult, best_sha256: str) -> None:
        self._begin_table()
        left = self.progress.left() if self.progress else ""
        self.status.print(
            f"{result.epoch:5d}  {result.train_loss:10.4f}  {result.valid_loss:10.4f}  "
            f"{result.dice:6.4f}  {result.patient_dice:10.4f}  "
            f"{_number(result.tumor_patient_dice):>10}  {result.slices_per_second:8.3g}  "
            f"{format_duration(result.seconds):>6}  {left:>8}".rstrip()
        )
        for name in (
            "train_loss",
            "valid_loss",
            "dice",
            "patient_dice",
            "tumor_patient_dice",
            "slices_per_second",
            "seconds",
        ):
            value = getattr(result, name)
            if value is not None:
                self.tracker.append(f"train/epoch/{name}", value, result.epoch)
        if best_sha256:
            self.tracker.record(
                "checkpoint", {"epoch": result.epoch, "weights_sha256": best_sha256}
            )


def _number(dice: float | None) -> str:
    return "" if dice is None else f"{dice:.4f}"
