"""Records a training: checkpoints, tables, figures, and messages to the driver."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar, TypeVarTuple

import torch
from fastai.learner import Learner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segmodel.core.dice import EpochResult, PatientDice, Step, best_epoch
from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard, TrainerState
from segmodel.report import figures
from segmodel.storage import csv_files, store
from segmodel.training.distributed import WorkerContext
from segmodel.training.learner import Cycles, optimizer_state
from segmodel.training.messages import EpochDone, StepsDone, TrainingDone, TrainingStarted
from segmodel.training.pictures import figure_uri, show_patients
from segmodel.training.task import Worker

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

STEP_MESSAGE_SECONDS = 1.0
SHOWN_SAMPLES = 12


def peak_memory_mb(context: WorkerContext) -> float:
    """Peak memory of this worker so far: of its GPU, or of its process."""
    if context.device.type == "cuda":
        return torch.cuda.max_memory_allocated(context.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**10 if sys.platform == "linux" else 2**20
    )


class TrainingRecorder:
    """Writes checkpoints, tables and figures, and tells the driver; the first worker has one."""

    def __init__(self, worker: Worker, cycles: Cycles) -> None:
        self.worker, self.cycles = worker, cycles
        self.config, self.queue = worker.task.config, worker.task.queue
        self.publish = worker.task.publish
        state = worker.state
        self.history = [_epoch_result(row) for row in state.history] if state else []
        self.steps = (
            [step for step in self._old_steps() if step.epoch <= len(self.history)] if state else []
        )
        best_sha256 = ""
        if state and best_epoch(self.history) is self.history[-1]:
            # Again: the process may have died while it wrote best/.
            best_sha256 = self._save_best().weights_sha256
        self.unsent: list[Step] = []
        self.last_message = 0.0
        steps_per_epoch = len(worker.learner.dls[0]) // self.config.accumulate
        steps = sum(epochs for epochs, _ in cycles) * steps_per_epoch
        self.queue.put(
            TrainingStarted(
                steps=steps,
                steps_done=len(self.steps),
                cycles=cycles,
                history=tuple(self.history),
                best_sha256=best_sha256,
                last_steps=tuple(step for step in self.steps if step.epoch == len(self.history)),
            )
        )

    def step(self, step: Step) -> None:
        """Record a step; tell the driver about once a second."""
        self.steps.append(step)
        self.unsent.append(step)
        if time.monotonic() - self.last_message >= STEP_MESSAGE_SECONDS:
            self._send_steps()

    def epoch(self, result: EpochResult, learn: Learner) -> None:
        """Write last/ and the tables, and best/ if the epoch is the best so far.

        last/trainer.pt says that the epoch is done.
        """
        self.history.append(result)
        best = best_epoch(self.history) is result
        model, card = self._network(), self._card()
        last = store.join(self.config.output, "last")
        if best:
            self._write_patients(learn.patient_dice)
        written = self.publish(checkpoint.save, last, model, card)
        rows = [asdict(earlier) for earlier in self.history]
        steps = [asdict(step) for step in self.steps]
        self.publish(csv_files.publish_csv, store.join(self.config.output, "history.csv"), rows)
        self.publish(csv_files.publish_csv, store.join(self.config.output, "steps.csv"), steps)
        weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        self.publish(
            checkpoint.save_trainer,
            last,
            TrainerState(
                result.epoch,
                self.cycles,
                weights,
                optimizer_state(learn),
                card.mean,
                card.std,
                tuple(rows),
                self.worker.precision,
            ),
        )
        # After trainer.pt, from which best/ is written again if the process dies between its files.
        if best:
            self._save_best()
        self._send_steps()
        self.queue.put(EpochDone(result, written.weights_sha256 if best else ""))

    def finish(self) -> None:
        """Draw the figures of a finished training."""
        numbers, rates, momenta = zip(
            *((step.step, step.lr, step.momentum) for step in self.steps), strict=True
        )
        uri = figure_uri(self.config, "schedule.png")
        self.publish(figures.schedule, numbers, rates, momenta, uri)
        self.publish(figures.history, self.history, figure_uri(self.config, "history.png"))
        show_patients(self.worker)
        self.queue.put(TrainingDone(peak_memory_mb(self.worker.context)))

    def _network(self) -> nn.Module:
        model: nn.Module = self.worker.learner.model
        return model.module if isinstance(model, DistributedDataParallel) else model

    def _card(self) -> ModelCard:
        """The card of the network after the last epoch."""
        result = self.history[-1]
        metrics = {
            "dice": result.dice,
            "patient_dice": result.patient_dice,
            "valid_loss": result.valid_loss,
            "epoch": float(result.epoch),
        }
        if result.tumor_patient_dice is not None:
            metrics["tumor_patient_dice"] = result.tumor_patient_dice
        return replace(self.worker.card, metrics=metrics)

    def _save_best(self) -> ModelCard:
        best = store.join(self.config.output, "best")
        return self.publish(checkpoint.save, best, self._network(), self._card())

    def _send_steps(self) -> None:
        if self.unsent:
            self.queue.put(StepsDone(tuple(self.unsent)))
        self.unsent, self.last_message = [], time.monotonic()

    def _old_steps(self) -> list[Step]:
        rows = csv_files.read_csv(store.join(self.config.output, "steps.csv"))
        names = ("lr", "momentum", "loss")
        return [
            Step(int(row["step"]), int(row["epoch"]), *(float(row[name]) for name in names))
            for row in rows
        ]

    def _write_patients(self, dice: Sequence[PatientDice]) -> None:
        counts = self.worker.valid.rows.counts()
        rows = [
            {"patient_id": patient, "slices": counts[patient], **of_patient._asdict()}
            for patient, of_patient in zip(counts, dice, strict=True)
        ]
        self.publish(csv_files.publish_csv, store.join(self.config.output, "patients.csv"), rows)


def _epoch_result(row: Mapping[str, float]) -> EpochResult:
    numbers: dict[str, Any] = {**row, "epoch": int(row["epoch"])}
    return EpochResult(**numbers)
