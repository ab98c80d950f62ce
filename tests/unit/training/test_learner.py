import gc
import os
from collections.abc import Callable
from pathlib import Path

import fastai.learner
import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.learner import Learner
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import _disable_current_modes

from segmodel.archive.annotations import find_annotated
from segmodel.archive.reader import Archive
from segmodel.core import schema
from segmodel.core.dice import EpochResult, Step
from segmodel.core.errors import TrainingError
from segmodel.data import sampling
from segmodel.data.dataset import SliceDataset
from segmodel.data.preprocessing import ChannelStatistics
from segmodel.models.unet import ClassicalUnet
from segmodel.settings.training import TrainConfig
from segmodel.training.distributed import WorkerContext
from segmodel.training.learner import build_learner, fit, optimizer_state, restore_optimizer
from segmodel.training.lr_range_test import RangeTest, range_test, suggest
from tests.support.archive_writer import ArchiveWriter
from tests.support.device_waits import DeviceWaits

SIZE, HERE = 32, WorkerContext(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Patients A (16 slices) and B (5): noise up to 60, and a square of 12 x 12 pixels that is brighter by 180."""
    uri = str(tmp_path_factory.mktemp("squares"))
    generator = np.random.default_rng(0)
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    mask[8:20, 8:20] = 1
    with ArchiveWriter(
        uri, source="test", channels=("a", "b", "c"), intensity_scaling="none", overwrite=False
    ) as writer:
        for patient, count in (("A", 16), ("B", 5)):
            rows = [
                {
                    "slice_id": f"{patient}{n}",
                    "patient_id": patient,
                    "series_id": patient,
                    "slice_index": n,
                    "height": SIZE,
                    "width": SIZE,
                    "mask": mask.tobytes(),
                    "source_uri": "",
                    "pixels": (generator.integers(0, 60, (SIZE, SIZE, 3)) + 180 * mask[..., None])
                    .astype(np.uint8)
                    .tobytes(),
                }
                for n in range(1, count + 1)
            ]
            writer.append(
                pa.Table.from_pylist(rows, schema=schema.ARCHIVE), schema.REJECTS.empty_table()
            )
        writer.close()
    return Archive(uri)


def recipe(**changes: object) -> TrainConfig:
    settings = {
        "archive": "/a",
        "output": "/o",
        "arch": "classical",
        "image_size": SIZE,
        "batch_size": 4,
        "precision": "fp32",  # what is compared here must not depend on the CPU
        "tracking": "none",
    }
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


def learner_of(
    archive: Archive,
    config: TrainConfig,
    model: nn.Module | None = None,
    worker: WorkerContext = HERE,
) -> Learner:
    rows = find_annotated(archive, mixed_sizes=False)
    train, valid = (SliceDataset(archive, rows.of([patient]), SIZE) for patient in ("A", "B"))
    torch.manual_seed(0)
    return build_learner(
        model or ClassicalUnet(3, width=4),
        train,
        valid,
        ChannelStatistics((0.2,) * 3, (0.3,) * 3),
        config,
        worker,
    )


def run(
    learner: Learner,
    config: TrainConfig,
    done: int = 0,
    stop_after: int | None = None,
    on_epoch: Callable[[Learner], None] = lambda learner: None,
) -> tuple[list[Step], list[EpochResult]]:
    """Fit the cycles of the configuration; KeyboardInterrupt after `stop_after` epochs."""
    steps: list[Step] = []
    results: list[EpochResult] = []

    def epoch(result: EpochResult, learn: Learner) -> None:
        results.append(result)
        on_epoch(learn)
        if result.epoch == stop_after:
            raise KeyboardInterrupt

    cycles = tuple((epochs, float(lr)) for epochs, lr in config.cycles)
    try:
        fit(learner, cycles, config, on_step=steps.append, on_epoch=epoch, epochs_done=done)
    except KeyboardInterrupt:
        assert stop_after is not None
    return steps, results


def validated(learner: Learner) -> dict[str, object]:
    with learner.no_bar(), learner.no_logging():
        learner.validate()
    found = {metric.name: metric.value for metric in learner.metrics}
    return found | {"patient_dice": [tuple(patient) for patient in found["patient_dice"]]}


def with_batch_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )


def validate_as_one_of_two(rank: int, archive: Archive, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["WORLD_SIZE"] = (
        "2"  # as Ray Train does; fastai looks at it, and the two have unequal numbers of batches
    )
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.save(validated_together(rank, archive), f"{folder}/{rank}.pt")
    gc.collect()  # a Learner's parts refer to each other: it would keep gloo and its threads until the process ends
    dist.destroy_process_group()


def validated_together(rank: int, archive: Archive) -> dict[str, object]:
    model = with_batch_norm()
    wrapped = DistributedDataParallel(model)
    model[
        1
    ].running_mean += rank  # as after a step: the statistics are those of a worker's own slices
    return validated(
        learner_of(archive, recipe(), wrapped, WorkerContext(rank, 2, torch.device("cpu")))
    )


def test_two_workers_validate_what_one_would(archive: Archive, tmp_path: Path) -> None:
    """Five slices of one patient: three here, two there; the loss and the Dice are those of all their voxels together."""
    torch.multiprocessing.spawn(validate_as_one_of_two, args=(archive, str(tmp_path)), nprocs=2)
    alone = validated(learner_of(archive, recipe(), with_batch_norm()))
    assert 0 < alone["dice"] < 1
    assert alone["patient_dice"] == [(alone["dice"], 5 * 12 * 12)]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert (found["dice"], found["patient_dice"]) == (alone["dice"], alone["patient_dice"])


def test_a_tiny_network_learns_a_bright_square(archive: Archive) -> None:
    config = recipe(epochs=25, lr=3e-3)
    steps, results = run(learner_of(archive, config), config)
    assert [result.epoch for result in results] == list(range(1, 26))
    assert [step.step for step in steps] == list(range(1, 101))  # 16 slices are 4 steps of 4
    assert results[-1].dice > 0.9
    assert results[-1].patient_dice == pytest.approx(results[-1].dice)  # one validation patient
    assert results[-1].tumor_patient_dice == results[-1].patient_dice
    assert results[-1].train_loss < results[0].train_loss


def test_the_learning_rate_follows_1cycle_in_each_cycle(archive: Archive) -> None:
    config = recipe(epochs=[4, 8], lr=[1e-3, 1e-4])
    steps, _ = run(learner_of(archive, config), config)
    rates = [step.lr for step in steps]
    assert len(rates) == 16 + 32
    assert rates[0] == pytest.approx(1e-3 / 25)
    assert rates[4] == pytest.approx(1e-3)  # after a quarter of the cycle
    assert rates[16] == pytest.approx(1e-4 / 25)
    assert rates[16 + 8] == pytest.approx(1e-4)
    assert steps[4].momentum == pytest.approx(0.85)
    assert steps[16].epoch == 5


def test_a_training_that_goes_on_ends_where_it_would_have_without_the_break(
    archive: Archive,
) -> None:
    config = recipe(epochs=[2, 3], lr=[1e-3, 5e-4])
    whole = learner_of(archive, config)
    steps, results = run(whole, config)

    broken = learner_of(archive, config)
    kept: dict[str, object] = {}

    def keep(learn: Learner) -> None:
        weights = {name: value.clone() for name, value in learn.model.state_dict().items()}
        kept.update(weights=weights, optimizer=optimizer_state(learn))

    run(broken, config, stop_after=3, on_epoch=keep)  # in the middle of the second cycle
    resumed = learner_of(archive, config)
    resumed.model.load_state_dict(kept["weights"])
    restore_optimizer(resumed, kept["optimizer"])  # type: ignore[arg-type]
    steps_after, results_after = run(resumed, config, done=3)
    assert steps_after == steps[12:]
    assert [r.dice for r in results_after] == [r.dice for r in results[3:]]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


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


def test_slices_are_augmented_and_dropped_alike_by_one_and_two_workers(archive: Archive) -> None:
    one, two = inputs_of(archive, 1), inputs_of(archive, 2)
    assert sorted(one) == sorted(two) == list(range(16))
    assert all(torch.equal(one[row], two[row]) for row in one)
    kept = torch.stack([one[row][-64:] for row in one])  # of 64 channels, at 4 times 16
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert 0.4 < float((kept > 0).float().mean()) < 0.6
    for other in (inputs_of(archive, 1, seed=1), inputs_of(archive, 1, epochs=2)):
        assert not any(torch.equal(one[row], other[row]) for row in one)


def test_accumulated_passes_make_the_step_of_the_whole_batch(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With cross-entropy alone, whose mean over the batch is that of its halves."""
    settings = {"loss": "ce", "epochs": 1, "lr": 1e-3, "clip_norm": 0.0}
    monkeypatch.setattr(sampling, "shuffle", lambda *_: np.arange(16))
    ends = []
    for accumulate in (1, 2):
        config = recipe(accumulate=accumulate, **settings)
        learner = learner_of(archive, config)
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
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_: object, **__: object) -> None:
        raise AssertionError("fetched from the device, and from all workers")

    monkeypatch.setattr(fastai.learner, "to_detach", fetched)
    config = recipe(epochs=1, lr=1e-3)
    steps, results = run(learner_of(archive, config), config)
    assert (len(steps), len(results)) == (4, 1)


class CountWaits(Callback):
    """What waits for the device in a batch, before all other callbacks and behind them."""

    order = -40

    def __init__(self) -> None:
        self.of_training, self.of_validation = DeviceWaits(), DeviceWaits()

    def before_batch(self) -> None:
        self.counting = self.of_training if self.training else self.of_validation
        self.counting.__enter__()


class EndOfBatch(Callback):
    """Ends the counting."""

    order = 100

    def after_batch(self) -> None:
        self.learn.count_waits.counting.__exit__(None, None, None)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_waits_for_the_device(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    in_tensors_of_the_host = ParamScheduler.before_batch

    def schedule(callback: ParamScheduler) -> None:
        with _disable_current_modes():
            in_tensors_of_the_host(callback)

    monkeypatch.setattr(ParamScheduler, "before_batch", schedule)
    config = recipe(epochs=1, lr=1e-3, accumulate=accumulate)
    learner = learner_of(archive, config)
    counted = CountWaits()
    learner.add_cbs([counted, EndOfBatch()])
    steps, _ = run(learner, config)
    assert len(steps) == 4
    assert len(counted.of_training.fetched) == 4  # each step's loss is on its way back
    assert (counted.of_training.found, counted.of_validation.found) == ({}, {})


def test_a_gradient_is_shortened_to_the_largest_norm(archive: Archive) -> None:
    config = recipe(epochs=1, lr=1e-3, clip_norm=1e-6)
    learner = learner_of(archive, config)
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


def test_bfloat16_trains_with_parameters_and_loss_in_fp32(archive: Archive) -> None:
    config = recipe(epochs=1, lr=1e-3, precision="bf16")
    learner = learner_of(archive, config)
    kinds: set[torch.dtype] = set()
    learner.model.head.register_forward_hook(lambda module, given, out: kinds.add(out.dtype))
    steps, _ = run(learner, config)
    assert kinds == {torch.bfloat16}
    assert {parameter.dtype for parameter in learner.model.parameters()} == {torch.float32}
    assert np.isfinite([step.loss for step in steps]).all()


def test_a_loss_that_is_no_number_stops_the_training_and_names_the_step(archive: Archive) -> None:
    config = recipe(epochs=1, lr=1e30)
    with pytest.raises(
        TrainingError, match=r"^the loss became nan in epoch 1, step \d, at a learning rate of"
    ):
        run(learner_of(archive, config), config)


class SpoilLastStep(Callback):
    """The last step of an epoch leaves weights that are no numbers, after a loss that is one."""

    def after_train(self) -> None:
        with torch.no_grad():
            self.learn.model.head.weight.fill_(torch.nan)


def test_weights_that_are_no_numbers_stop_the_training_before_they_are_kept(
    archive: Archive,
) -> None:
    config = recipe(epochs=2, lr=1e-3)
    learner = learner_of(archive, config)
    learner.add_cb(SpoilLastStep())
    kept: list[Learner] = []
    with pytest.raises(TrainingError, match=r"^the validation loss became nan in epoch 1"):
        run(learner, config, on_epoch=kept.append)
    assert kept == []


def test_the_suggestion_lies_where_a_known_curve_falls_steadily() -> None:
    """Flat up to 1e-5, one down for each tenfold from there to 1e-2, then up: half way down is 10^-3.5."""
    lrs = np.logspace(-7, 0, 141)
    exponents = np.log10(lrs)
    losses = np.where(
        exponents < -5, 3.0, np.where(exponents < -2, 3.0 - (exponents + 5), 10.0 * (exponents + 2))
    )
    falls = 1e-5 * 10 ** (
        3 * 0.5
    )  # the middle of the valley, which fastai's rule takes: a third and half a third of the way
    assert suggest(lrs.tolist(), losses.tolist()) == pytest.approx(falls, rel=0.2)


class Walk(nn.Module):
    """Answers with its only parameter, which begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1))

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        return self.position


@pytest.mark.parametrize("target", [0.1, 0.001])
def test_the_suggestion_on_a_walk_of_known_length_lies_before_its_end(
    archive: Archive, target: float
) -> None:
    """The loss is the distance to `target`. Adam walks one learning rate a step while the slope is the same, and the rates are
    a geometric series of ratio r: their sum reaches the target where a rate is target * (r - 1)."""
    config = recipe(lr=1e-3)
    learner = learner_of(archive, config, Walk())
    learner.loss_func = lambda position, mask: (position - target).abs().mean()
    found = range_test(
        learner, config, lr_min=1e-7, lr_max=1.0, steps=100, on_step=lambda step: None
    )
    ratio = 10 ** (7 / 99)
    end = target * (ratio - 1)
    assert found.lrs[int(np.argmin(found.losses))] == pytest.approx(end, rel=ratio - 1)
    assert 1e-6 < found.suggestion < end


def test_a_training_at_the_suggested_rate_beats_a_tenth_and_a_thousand_times_of_it(
    archive: Archive,
) -> None:
    config = recipe(lr=1e-3)
    suggestion = range_test(
        learner_of(archive, config),
        config,
        lr_min=1e-6,
        lr_max=10.0,
        steps=100,
        on_step=lambda step: None,
    ).suggestion
    ends = []
    for factor in (0.1, 1, 1000):
        config = recipe(epochs=10, lr=factor * suggestion)
        ends.append(run(learner_of(archive, config), config)[1][-1].train_loss)
    assert ends[1] < ends[0] / 1.5
    assert ends[1] < ends[2] / 1.5


def test_a_curve_that_never_falls_suggests_nothing() -> None:
    with pytest.raises(TrainingError, match="the loss never fell"):
        suggest(np.logspace(-7, 0, 50).tolist(), np.linspace(1, 2, 50).tolist())


def test_a_test_that_diverges_at_once_suggests_nothing() -> None:
    with pytest.raises(TrainingError, match="diverged after 5 steps"):
        suggest([1e-3] * 5, [1.0] * 5)


def ranged(learner: Learner, config: TrainConfig) -> RangeTest:
    return range_test(learner, config, lr_min=1e-6, lr_max=1.0, steps=60, on_step=lambda step: None)


def test_a_range_test_leaves_network_and_optimizer_as_they_were(archive: Archive) -> None:
    config = recipe(epochs=2, lr=1e-3)
    untouched, tested = learner_of(archive, config), learner_of(archive, config)
    for learner in (untouched, tested):  # so that there are moments that a range test could change
        run(learner, config)
    found = ranged(tested, config)
    assert found.lrs[0] == pytest.approx(1e-6)
    assert found.lrs[1] / found.lrs[0] == pytest.approx(1e6 ** (1 / 59))
    assert 1e-5 < found.suggestion < 0.5
    assert run(tested, config)[0] == run(untouched, config)[0]
