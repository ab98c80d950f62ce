"""What the first worker of a training leaves behind: checkpoints, tables, figures, and messages to the driver."""

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar, TypeVarTuple

import numpy as np
import torch
from fastai.learner import Learner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segmodel.archive.annotations import SliceRows
from segmodel.archive.slice_format import shown_channel
from segmodel.core.dice import EpochResult, PatientDice, Step, best_epoch
from segmodel.data.dataset import SliceDataset
from segmodel.data.splits import Split
from segmodel.inference.precision import Precision
from segmodel.inference.predictor import Predictor
from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard, TrainerState
from segmodel.report import figures
from segmodel.report.figures import Sample
from segmodel.runtime.messages import MessageQueue
from segmodel.settings.training import RecipeConfig
from segmodel.storage import csv_files, store
from segmodel.storage.folder_lock import WorkerLease
from segmodel.training import output
from segmodel.training.distributed import WorkerContext
from segmodel.training.learner import Cycles, optimizer_state
from segmodel.training.messages import EpochDone, StepsDone, TrainingDone, TrainingStarted

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

STEP_MESSAGE_SECONDS = 1.0
SHOWN_SAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What the driver tells every worker."""

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
        """Call `write`, which publishes a file or a checkpoint, if the output folder is still this job's.

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
        """Whether it is the one that writes."""
        return self.context.rank == 0


def peak_memory_mb(context: WorkerContext) -> float:
    """Most memory that this worker has had so far: of its GPU, or of its process."""
    if context.device.type == "cuda":
        return torch.cuda.max_memory_allocated(context.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**10 if sys.platform == "linux" else 2**20
    )


def figure_uri(config: RecipeConfig, name: str) -> str:
    """Where a figure of this run lies."""
    return store.join(config.output, "figures", name)


def show_samples(train: SliceDataset, task: WorkerTask) -> None:
    """Some training slices with their masks, evenly chosen among those with tumor."""
    channel = shown_channel(train.archive.info.channels)
    indices = np.unique(
        np.linspace(0, len(train) - 1, 8 * SHOWN_SAMPLES).round().astype(int)
    ).tolist()
    pixels_nhwc, mask_nhw, _ = train[indices]
    order = sorted(range(len(indices)), key=lambda n: not mask_nhw[n].any())[:SHOWN_SAMPLES]
    samples = [
        (
            train.rows.patients[train.rows.patient_n[indices[n]]],
            pixels_nhwc[n, ..., channel].numpy(),
            mask_nhw[n].bool().numpy(),
        )
        for n in sorted(order)
    ]
    title = f"Training slices, {train.archive.info.channels[channel]}, with their masks"
    task.publish(figures.sample_slices, samples, title, figure_uri(task.config, "samples.png"))


class Writer:
    """The first worker's side: checkpoints, tables, figures, and messages to the driver."""

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
            best_sha256 = (
                self._save_best().weights_sha256
            )  # once more: the process may have died over it
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
        """Keep it, and tell the driver about once a second."""
        self.steps.append(step)
        self.unsent.append(step)
        if time.monotonic() - self.last_message >= STEP_MESSAGE_SECONDS:
            self._send_steps()

    def epoch(self, result: EpochResult, learn: Learner) -> None:
        """Write last/ and the tables, then best/ if it is the best; last/trainer.pt says that the epoch is done."""
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
        if best:  # after trainer.pt: should the process die between best/'s two files, they are written again from that
            self._save_best()
        self._send_steps()
        self.queue.put(EpochDone(result, written.weights_sha256 if best else ""))

    def finish(self) -> None:
        """Draw what the training came to."""
        numbers, rates, momenta = zip(
            *((step.step, step.lr, step.momentum) for step in self.steps), strict=True
        )
        uri = figure_uri(self.config, "schedule.png")
        self.publish(figures.schedule, numbers, rates, momenta, uri)
        self.publish(figures.history, self.history, figure_uri(self.config, "history.png"))
        self._show_patients()
        self.queue.put(TrainingDone(peak_memory_mb(self.worker.context)))

    def _network(self) -> nn.Module:
        model: nn.Module = self.worker.learner.model
        return model.module if isinstance(model, DistributedDataParallel) else model

    def _card(self) -> ModelCard:
        """Of the network as it is after the last epoch."""
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

    def _show_patients(self) -> None:
        """Draw the best, the median and the worst validation patient with tumor in the best epoch."""
        valid, device = self.worker.valid, self.worker.context.device
        ranked = rank_patients(csv_files.read_csv(store.join(self.config.output, "patients.csv")))
        model, card = checkpoint.load(store.join(self.config.output, "best"))
        predictor = Predictor(
            model,
            card,
            batch_size=1,
            threshold=card.threshold,
            device=device,
            precision="bf16" if device.type == "cuda" else "fp32",
        )
        channel = shown_channel(card.channels)
        samples = []
        places = {"worst": len(ranked) - 1, "median": len(ranked) // 2, "best": 0}
        for place, name in sorted(
            {place: name for name, place in places.items()}.items()
        ):  # one row each, if there are few
            row = ranked[place]
            own = np.flatnonzero(
                valid.rows.patient_n == valid.rows.patients.index(row["patient_id"])
            ).tolist()
            pixels_nhwc, mask_nhw, _ = valid[own]
            shown = int(mask_nhw.sum(dim=(1, 2)).argmax())
            prediction = predictor.predict(pixels_nhwc[shown : shown + 1].numpy())
            samples.append(
                Sample(
                    title=f"{name}: {row['patient_id']}",
                    image_hw=pixels_nhwc[shown, ..., channel].numpy(),
                    truth_hw=mask_nhw[shown].bool().numpy(),
                    prediction_hw=prediction.mask_nhw[0],
                    note=f"Dice of the patient {float(row['dice']):.3f}",
                )
            )
        self.publish(
            figures.contact_sheet,
            samples,
            "Validation patients, the slice with most tumor",
            figure_uri(self.config, "patients.png"),
            card.channels[channel],
        )


def rank_patients(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of patients.csv from the best Dice to the worst: those with tumor, or all if there is none.

    A patient without tumor has a Dice of 1 as soon as nothing is found.
    """
    with_tumor = [row for row in rows if int(row["tumor_voxels"])]
    return sorted(with_tumor or rows, key=lambda row: -float(row["dice"]))


def _epoch_result(row: Mapping[str, float]) -> EpochResult:
    numbers: dict[str, Any] = {**row, "epoch": int(row["epoch"])}
    return EpochResult(**numbers)
