import fastai.learner
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.learner import Learner
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from segmodel.archive.reader import Archive
from segmodel.core.errors import TrainingError
from segmodel.data import sampling
from segmodel.models.unet import ClassicalUnet
from segmodel.training.distributed import WorkerContext
from tests.support.device_waits import CountWaits, EndOfBatch
from tests.support.tiny_training import learner_of, recipe, run


class RecordInputs(Callback):
    """Keeps the network's input and what dropout leaves of ones, by slice."""

    order = -5

    def __init__(self) -> None:
        self.found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def before_batch(self) -> None:
        if self.training:
            self.inputs = self.learn.xb[0].clone()
            self.model.dropouts[1].register_forward_hook(self.keep)

    def keep(self, module: nn.Module, given: object, out: torch.Tensor) -> None:
        ones = torch.ones_like(out)
        module._forward_hooks.clear()
        dropped = module(ones)[:, :, 0, 0]
        for n, row in enumerate(self.learn.rows_n.tolist()):
            self.found[row] = (self.inputs[n], dropped[n])


def inputs_of(
    archive: Archive, world_size: int, seed: int = 0, epochs: int = 1
) -> dict[int, torch.Tensor]:
    """Each slice of the last epoch as its worker's network gets it, and its kept channels."""
    config = recipe(epochs=epochs, lr=1e-3, batch_size=8, seed=seed, dropout=0.5)
    found = {}
    for rank in range(world_size):
        worker = WorkerContext(rank, world_size, torch.device("cpu"))
        record = RecordInputs()
        learner = learner_of(archive, config, ClassicalUnet(3, width=4, dropout=0.5), worker)
        torch.manual_seed(rank)
        learner.add_cb(record)
        run(learner, config)
        found |= {row: torch.cat([x.flatten() for x in own]) for row, own in record.found.items()}
    return found


def test_slices_are_augmented_and_dropped_alike_by_one_and_two_workers(squares: Archive) -> None:
    one, two = inputs_of(squares, 1), inputs_of(squares, 2)
    assert sorted(one) == sorted(two) == list(range(16))
    assert all(torch.equal(one[row], two[row]) for row in one)
    kept = torch.stack([one[row][-64:] for row in one])  # of 64 channels, at 4 times 16
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert 0.4 < float((kept > 0).float().mean()) < 0.6
    for other in (inputs_of(squares, 1, seed=1), inputs_of(squares, 1, epochs=2)):
        assert not any(torch.equal(one[row], other[row]) for row in one)


def test_accumulated_passes_make_the_step_of_the_whole_batch(
    squares: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With cross-entropy alone, whose mean over the batch is that of its halves."""
    settings = {"loss": "ce", "epochs": 1, "lr": 1e-3, "clip_norm": 0.0}
    monkeypatch.setattr(sampling, "shuffle", lambda *_: np.arange(16))
    ends = []
    for accumulate in (1, 2):
        config = recipe(accumulate=accumulate, **settings)
        learner = learner_of(squares, config)
        sizes: list[int] = []

        def unchanged(
            x: torch.Tensor,
            mask: torch.Tensor,
            random_nk: torch.Tensor,
            sizes: list[int] = sizes,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            sizes.append(len(x))
            return x, mask

        learner.prepare_batch.augmentation = unchanged
        steps, _ = run(learner, config)
        assert sizes == [4 // accumulate] * 4 * accumulate
        assert [step.lr for step in steps] == pytest.approx([4e-5, 1e-3, 7.5e-4, 2.5e-4], rel=1e-3)
        ends.append([parameter.detach().clone() for parameter in learner.model.parameters()])
    for one, two in zip(*ends, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_no_step_waits_for_fastais_smoothed_loss(
    squares: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_: object, **__: object) -> None:
        raise AssertionError("fetched from the device, and from all workers")

    monkeypatch.setattr(fastai.learner, "to_detach", fetched)
    config = recipe(epochs=1, lr=1e-3)
    steps, results = run(learner_of(squares, config), config)
    assert (len(steps), len(results)) == (4, 1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_waits_for_the_device(
    squares: Archive, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    in_tensors_of_the_host = ParamScheduler.before_batch

    def schedule(callback: ParamScheduler) -> None:
        with _disable_current_modes():
            in_tensors_of_the_host(callback)

    monkeypatch.setattr(ParamScheduler, "before_batch", schedule)
    config = recipe(epochs=1, lr=1e-3, accumulate=accumulate)
    learner = learner_of(squares, config)
    counted = CountWaits()
    learner.add_cbs([counted, EndOfBatch()])
    steps, _ = run(learner, config)
    assert len(steps) == 4
    assert len(counted.of_training.fetched) == 4  # each step's loss is on its way back
    assert (counted.of_training.found, counted.of_validation.found) == ({}, {})


def test_a_gradient_is_shortened_to_the_largest_norm(squares: Archive) -> None:
    config = recipe(epochs=1, lr=1e-3, clip_norm=1e-6)
    learner = learner_of(squares, config)
    norms: list[float] = []
    step = learner.opt.opt.step

    def watch() -> None:
        norms.append(
            float(torch.nn.utils.get_total_norm([p.grad for p in learner.model.parameters()]))
        )
        step()

    learner.opt.opt.step = watch
    run(learner, config)
    assert norms == pytest.approx([1e-6] * 4, rel=1e-3)


def test_bfloat16_trains_with_parameters_and_loss_in_fp32(squares: Archive) -> None:
    config = recipe(epochs=1, lr=1e-3, precision="bf16")
    learner = learner_of(squares, config)
    kinds: set[torch.dtype] = set()
    learner.model.head.register_forward_hook(lambda module, given, out: kinds.add(out.dtype))
    steps, _ = run(learner, config)
    assert kinds == {torch.bfloat16}
    assert {parameter.dtype for parameter in learner.model.parameters()} == {torch.float32}
    assert np.isfinite([step.loss for step in steps]).all()


def test_a_loss_that_is_no_number_stops_the_training_and_names_the_step(squares: Archive) -> None:
    config = recipe(epochs=1, lr=1e30)
    with pytest.raises(
        TrainingError, match=r"^the loss became nan in epoch 1, step \d, at a learning rate of"
    ):
        run(learner_of(squares, config), config)


class SpoilLastStep(Callback):
    """The last step of an epoch leaves weights that are no numbers, after a loss that is one."""

    def after_train(self) -> None:
        with torch.no_grad():
            self.learn.model.head.weight.fill_(torch.nan)


def test_weights_that_are_no_numbers_stop_the_training_before_they_are_kept(
    squares: Archive,
) -> None:
    config = recipe(epochs=2, lr=1e-3)
    learner = learner_of(squares, config)
    learner.add_cb(SpoilLastStep())
    kept: list[Learner] = []
    with pytest.raises(TrainingError, match=r"^the validation loss became nan in epoch 1"):
        run(learner, config, on_epoch=kept.append)
    assert kept == []
