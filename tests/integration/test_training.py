"""Parts of a training, called as a driver or a worker calls them."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from segmodel.archive.annotations import find_annotated
from segmodel.archive.reader import Archive
from segmodel.core.dice import EpochResult, Step
from segmodel.core.errors import CheckpointError, ConfigError
from segmodel.data.splits import Split, split_patients
from segmodel.models import checkpoint
from segmodel.models.checkpoint import TrainerState
from segmodel.models.registry import ModelSettings
from segmodel.models.unet import ClassicalUnet
from segmodel.runtime.tracker import Tracker
from segmodel.settings.training import TrainConfig
from segmodel.training import output, worker_setup
from segmodel.training.console import TrainingListener
from segmodel.training.distributed import WorkerContext
from segmodel.training.messages import EpochDone, StepsDone, TrainingStarted
from segmodel.training.recorder import TrainingRecorder
from segmodel.training.task import Worker, WorkerTask
from tests.conftest import PATIENTS, SIZE, SLICES
from tests.support import standin


def test_a_training_that_goes_on_keeps_its_patients_when_the_archive_has_grown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the hash, a grown archive would split otherwise."""
    old = {f"P{number}": 1 for number in range(5)}
    began = split_patients(old, seed=3)
    grown = old | {f"Q{number}": 1 for number in range(20)}
    assert set(began.valid) & set(split_patients(grown, seed=3).train)
    (tmp_path / "split.json").write_text(json.dumps(asdict(began)))
    config = TrainConfig(archive="/a", output=str(tmp_path), resume=True, seed=3)
    assert output.load_or_make_split(config, grown) == began
    assert "20 patients were added to the archive since" in capsys.readouterr().out
    assert output.load_or_make_split(replace(config, resume=False), old) == began
    with pytest.raises(ConfigError, match=f"no longer has masks of {began.valid[0]}"):
        output.load_or_make_split(
            config, {patient: 1 for patient in grown if patient not in began.valid}
        )


@pytest.mark.parametrize(
    ("name", "content"),
    [("train.json", b"{"), ("train.json", b"[]"), ("split.json", b'{"train": []}')],
)
def test_a_training_whose_files_are_damaged_does_not_go_on_and_names_them(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    config = TrainConfig(archive="/data/archive", output=str(tmp_path), resume=True)
    with pytest.raises(ConfigError, match=f"{name} is damaged .*--o"):
        output.load_or_make_split(
            config, {"A": 1, "B": 1}
        ) if name == "split.json" else output.find_training(config, None)  # type: ignore[arg-type]


def test_a_compiled_network_has_the_gradients_and_the_weights_names_of_the_plain_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Traced as for a GPU, but without minutes of a C++ compiler."""
    compiled = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    monkeypatch.setattr(worker_setup, "prepare_model", lambda model: model)
    x_nchw, gradients = torch.rand(2, 3, 32, 32), []
    for compile_it in (False, True):
        torch.manual_seed(0)
        model = ClassicalUnet(3, width=2)
        names = list(model.state_dict())
        config = TrainConfig(archive="/data/archive", output="/data/model", compile=compile_it)
        placed = worker_setup.wrap_model(model, config, WorkerContext(0, 1, torch.device("cpu")))
        assert (placed._compiled_call_impl is not None) is compile_it
        placed(x_nchw)[:, 1].sum().backward()
        assert list(placed.state_dict()) == names
        gradients.append([parameter.grad for parameter in placed.parameters()])
    for plain, other in zip(*gradients, strict=True):
        assert torch.allclose(plain, other, atol=1e-4)


def test_an_image_size_that_the_memory_cannot_take_is_refused() -> None:
    """A slice of 256 x 256 keeps some 200 MB, so 32 slices of 8192 x 8192 keep some 6 TB."""
    config = TrainConfig(
        archive="/a", output="/o", arch="classical", image_size=8192, batch_size=32
    )
    settings = ModelSettings(arch="classical", channels=3)
    with pytest.raises(
        ConfigError,
        match=r"--image-size 8192, --batch-size 32: 32 slices in one pass .* 6\d{3} GiB",
    ):
        worker_setup.check_memory(
            config, settings, WorkerContext(0, 1, torch.device("cpu")), local_workers=1
        )
    worker_setup.check_memory(
        replace(config, image_size=32),
        settings,
        WorkerContext(0, 1, torch.device("cpu")),
        local_workers=1,
    )


def test_a_half_written_best_checkpoint_is_written_again_from_the_state(
    tmp_path: Path,
) -> None:
    """best/ has weights of epoch 2 and model.json of epoch 1; trainer.pt has epoch 2, the best."""
    old, new = standin.flair_threshold_model(), ClassicalUnet(3, width=2)
    card = standin.card(SIZE)
    output, best = str(tmp_path), str(tmp_path / "best")
    checkpoint.save(best, old, card)
    weights = safetensors.torch.save(dict(new.state_dict()))
    (tmp_path / "best" / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoint.load(best)
    (tmp_path / "steps.csv").write_text(
        "step,epoch,lr,momentum,loss\n1,1,0.1,0.9,2.0\n2,2,0.1,0.9,1.0\n"
    )
    epochs = tuple(
        asdict(EpochResult(n, 0.1, 0.1, dice, dice, 1.0, 1.0)) for n, dice in ((1, 0.5), (2, 0.75))
    )
    state = TrainerState(2, ((4, 1e-3),), new.state_dict(), {}, card.mean, card.std, epochs, "fp32")
    said: list[TrainingStarted] = []
    task: Any = SimpleNamespace(
        config=TrainConfig(archive="/a", output=output),
        queue=SimpleNamespace(put=said.append),
        publish=lambda write, *arguments: write(*arguments),
    )
    learner: Any = SimpleNamespace(model=new, dls=[range(3)])  # three steps an epoch
    TrainingRecorder(
        Worker(
            task,
            WorkerContext(0, 1, torch.device("cpu")),
            learner,
            range(32),
            range(8),
            card,
            state,
            "fp32",
        ),
        state.cycles,
    )  # type: ignore[arg-type]
    loaded, found = checkpoint.load(best)
    assert found.metrics["epoch"] == 2
    assert all(
        torch.equal(tensor, new.state_dict()[name]) for name, tensor in loaded.state_dict().items()
    )
    assert [message.best_sha256 for message in said] == [found.weights_sha256]
    assert said[0].steps == 4 * 3
    assert [step.step for step in said[0].last_steps] == [2]


def test_an_epoch_that_a_dead_worker_did_not_report_is_reported_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracker = RecordingTracker()
    listener = TrainingListener(tracker)
    first, second, third = (EpochResult(n, 0.1, 0.1, 0.5, 0.5, 1.0, 1.0) for n in (1, 2, 3))
    steps = tuple(Step(n, n, 0.1, 0.9, 2.0) for n in (1, 2, 3))
    begun = TrainingStarted(
        steps=3, steps_done=0, cycles=((3, 0.1),), history=(), best_sha256="", last_steps=()
    )
    for message in (
        begun,
        StepsDone(steps[:1]),
        EpochDone(first, "a"),
        # Killed between the last file of epoch 2 and the message.
        replace(
            begun,
            steps_done=2,
            history=(first, second),
            best_sha256="b",
            last_steps=steps[1:2],
        ),
        StepsDone(steps[2:]),
        EpochDone(third, ""),
    ):
        listener.handle(message)
    assert re.findall(r"^ +(\d) +0\.1000", capsys.readouterr().out, re.MULTILINE) == ["1", "2", "3"]
    assert [result.epoch for result in listener.history] == [1, 2, 3]
    assert tracker.series["train/epoch/dice"] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert tracker.series["train/step/loss"] == [(1, 2.0), (2, 2.0), (3, 2.0)]
    assert tracker.values["checkpoint"] == {"epoch": 2, "weights_sha256": "b"}


class RecordingTracker(Tracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.series: dict[str, list[tuple[float, float]]] = {}

    def record(self, name: str, values: Mapping[str, Any]) -> None:
        self.values[name] = dict(values)

    def append(self, name: str, value: float, step: float) -> None:
        self.series.setdefault(name, []).append((step, value))


def test_training_slices_are_streamed_when_memory_would_not_hold_them(
    phantom_archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Archive(phantom_archive)
    rows = find_annotated(found, mixed_sizes=False)
    config = TrainConfig(archive=phantom_archive, output="/o", image_size=SIZE)
    task = WorkerTask(
        config=config,
        rows=rows,
        split=Split(rows.patients[1:], rows.patients[:1]),
        queue=None,
        threads=None,
        lease=None,
    )  # type: ignore[arg-type]
    assert worker_setup.open_slices(task, found, local_workers=1)[2] is False
    needed = PATIENTS * SLICES * SIZE * SIZE * 4

    def memory(available: int) -> None:
        monkeypatch.setattr(worker_setup, "available_memory", lambda: available)

    memory(2 * needed)
    assert worker_setup.open_slices(task, found, local_workers=1)[2] is False
    memory(2 * needed - 2)
    train_slices, _, streamed = worker_setup.open_slices(task, found, local_workers=1)
    assert streamed
    assert train_slices.cached_groups is not None
    memory(needed - 2)
    with pytest.raises(ConfigError, match=r"--data memory: .* give --data stream"):
        worker_setup.open_slices(
            replace(task, config=replace(config, data="memory")), found, local_workers=1
        )
