import time
from typing import Any

import pytest
import torch
from torch import nn

from segmodel.data.preprocessing import ChannelStatistics
from segmodel.inference.precision import Precision
from segmodel.models.checkpoint import TrainerState
from segmodel.settings.training import TrainConfig
from segmodel.training import precision as training_precision
from segmodel.training.precision import choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Few:
    """Slices of 8 x 8 pixels, the lower half of each tumor."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, rows: list[int]) -> tuple[torch.Tensor, ...]:
        mask_nhw = torch.zeros(len(rows), 8, 8, dtype=torch.uint8)
        mask_nhw[:, 4:] = 1
        pixels_nhwc = 200 * mask_nhw[..., None].expand(-1, -1, -1, 3)
        return pixels_nhwc, mask_nhw, torch.tensor(rows)


class Slow(nn.Module):
    """Takes 50 ms longer in one of the formats."""

    def __init__(self, slow: Precision, bias: float = 0.0) -> None:
        super().__init__()
        self.slow_in_bf16 = slow == "bf16"
        self.layers = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        nn.init.constant_(self.layers[0].bias, bias)

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu") == self.slow_in_bf16:
            time.sleep(0.05)
        return self.layers(x_nchw)


@pytest.fixture(autouse=True)
def fast_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_precision, "cpu_has_bf16", lambda: True)


def chosen(
    model: nn.Module,
    requested: str = "auto",
    before: Precision | None = None,
    device: torch.device = CPU,
) -> Precision:
    config = TrainConfig(archive="/a", output="/o", precision=requested)  # type: ignore[arg-type]
    state = TrainerState(1, ((2, 1e-3),), {}, {}, (0.5,), (0.5,), (), before) if before else None
    slices: Any = Few()
    return choose_precision(
        config, state, model, slices, ChannelStatistics((0.5,), (0.25,)), device
    )


def test_a_new_training_on_cpus_takes_the_format_that_is_faster() -> None:
    assert chosen(Slow("fp32")) == "bf16"
    assert chosen(Slow("bf16")) == "fp32"


def test_a_cpu_without_bfloat16_trains_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_precision, "cpu_has_bf16", lambda: False)
    assert chosen(Slow("fp32")) == "fp32"


def test_one_worker_that_is_not_faster_in_bfloat16_decides_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This one would take bf16 and says 0; with the other's 1 the sum is 1."""
    monkeypatch.setattr(training_precision, "sum_over_workers", lambda numbers: [numbers[0] + 1])
    assert chosen(Slow("fp32")) == "fp32"


def test_gradients_that_are_no_numbers_are_not_worth_the_speed() -> None:
    assert chosen(Slow("fp32", bias=float("nan"))) == "fp32"


@pytest.mark.parametrize("before", ["bf16", "fp32"])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_training_that_goes_on_keeps_its_precision(
    before: Precision, device: torch.device
) -> None:
    slow_in_it = Slow(before)
    assert chosen(slow_in_it, before=before, device=device) == before


def test_a_request_is_followed_and_a_gpu_trains_in_bfloat16() -> None:
    assert chosen(Slow("bf16"), "bf16") == "bf16"
    assert chosen(Slow("fp32"), "fp32", device=GPU) == "fp32"
    assert chosen(Slow("bf16"), device=GPU) == "bf16"


def test_the_look_leaves_the_network_as_it_was() -> None:
    model = Slow("fp32")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
