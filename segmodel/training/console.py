"""The driver's side of a training: prints, tracks and remembers what the first worker says."""

from collections.abc import Callable, Sequence

from segmodel.core.dice import EpochResult, Step
from segmodel.core.errors import SegmodelError
from segmodel.core.progress import Progress, duration
from segmodel.runtime import ray_cluster
from segmodel.runtime.tracking import Tracker


class Listener:
    """What a range test says, and what a training says before its first step."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.progress: Progress | None = None
        self.error: SegmodelError | None = None
        self.suggestion: float | None = None
        self.parts: dict[str, Callable[[ray_cluster.Message], None]] = {
            "error": self._error,
            "data": self._data,
            "range_test_begins": self._range_test_begins,
            "range_test_step": self._range_test_step,
            "range_test_done": self._range_test_done,
        }

    def handle(self, message: ray_cluster.Message) -> None:
        """One message of a worker."""
        self.parts[message["kind"]](message)

    def _error(self, message: ray_cluster.Message) -> None:
        self.error = self.error or message["error"]  # every worker meets the same one

    def _data(self, message: ray_cluster.Message) -> None:
        each = " + ".join(str(count) for count in message["each"])
        print(
            f"{message['train_slices']:,} slices to train on, {message['valid_slices']:,} to validate on, "
            f"{'streamed from the archive' if message['streamed'] else 'in memory'}; "
            f"{message['parameters'] / 1e6:.1f} million parameters; workers: {message['workers']}, on {message['device']}, "
            f"{each} slices a pass",
            flush=True,
        )
        self.tracker.record("model", {"parameters": message["parameters"]})
        self.tracker.record(
            "data",
            {
                name: message[name]
                for name in ("train_slices", "valid_slices", "streamed", "workers")
            },
        )

    def _range_test_begins(self, message: ray_cluster.Message) -> None:
        print("learning-rate range test", flush=True)
        self.progress = Progress(message["steps"], "steps")

    def _range_test_step(self, message: ray_cluster.Message) -> None:
        if self.progress is not None:
            self.progress.advance(message["step"] - self.progress.done)

    def _range_test_done(self, message: ray_cluster.Message) -> None:
        self.suggestion = message["suggestion"]
        print(
            f"suggested learning rate {self.suggestion:.2e}, after {len(message['rows'])} steps",
            flush=True,
        )
        self.tracker.record("lr_find", {"suggestion": self.suggestion})
        for number, row in enumerate(message["rows"]):
            for name, value in row.items():
                self.tracker.append(f"lr_find/{name}", value, number)


class TrainingListener(Listener):
    """What a training says beside that; `history` is that of its epochs so far."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(tracker)
        self.begun = False
        self.history: list[EpochResult] = []
        self.steps_tracked = 0
        self.peak_memory_mb = 0.0
        self.parts |= {
            "begin": self._begin,
            "steps": self._steps,
            "epoch": self._epoch,
            "done": self._done,
        }

    def _begin(self, message: ray_cluster.Message) -> None:
        history, done = [EpochResult(**row) for row in message["history"]], message["steps_done"]
        if self.begun:  # workers that died may have finished an epoch without saying so
            self._track(message["last_steps"])
            for result in history[len(self.history) :]:
                self._report(result, message["best_sha256"] if result is history[-1] else "")
        if history or self.history:
            print(f"going on after epoch {len(history)}", flush=True)
        self.begun, self.history = True, history
        self.steps_tracked = max(self.steps_tracked, done)
        self.progress = Progress(message["steps"], "steps", done=done)
        cycles = ", then ".join(
            f"{epochs} epochs at up to {lr:.2g}" for epochs, lr in message["cycles"]
        )
        print(f"1cycle: {cycles}", flush=True)
        print(
            "epoch  train loss  valid loss    Dice  patients'  with tumor  slices/s    time",
            flush=True,
        )
        self.tracker.record("model", {"lr": ", ".join(f"{lr:.6g}" for _, lr in message["cycles"])})

    def _steps(self, message: ray_cluster.Message) -> None:
        for step in message["steps"]:
            if self.progress is not None:
                self.progress.advance(step.step - self.progress.done, f"loss {step.loss:.3f}")
        self._track(message["steps"])

    def _track(self, steps: Sequence[Step]) -> None:
        """Each step once, though it may be done again after a restart."""
        for step in steps:
            if step.step > self.steps_tracked:
                self.steps_tracked = step.step
                for name in ("loss", "lr", "momentum"):
                    self.tracker.append(f"train/step/{name}", getattr(step, name), step.step)

    def _epoch(self, message: ray_cluster.Message) -> None:
        result = EpochResult(**message["result"])
        self.history.append(result)
        self._report(result, message["best_sha256"])

    def _report(self, result: EpochResult, best_sha256: str) -> None:
        print(
            f"{result.epoch:5d}  {result.train_loss:10.4f}  {result.valid_loss:10.4f}  "
            f"{result.dice:6.4f}  {result.patient_dice:9.4f}  {_number(result.tumor_patient_dice):>10}  "
            f"{result.slices_per_second:8.3g}  {duration(result.seconds):>6}",
            flush=True,
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

    def _done(self, message: ray_cluster.Message) -> None:
        self.peak_memory_mb = message["peak_memory_mb"]


def _number(dice: float | None) -> str:
    return "" if dice is None else f"{dice:.4f}"
