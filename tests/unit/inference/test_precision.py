import pytest
import torch
from torch import nn

from segmodel.inference import precision
from segmodel.inference.precision import choose_precision, convert_precision
from tests.support import standin

CARD = standin.card(32)


class Counted(nn.Module):
    """Takes much longer in one of the two formats; its output may be no number."""

    def __init__(self, slow: torch.dtype, value: float = 0.0) -> None:
        super().__init__()
        self.slow, self.value = slow, value

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        if x_nchw.dtype == self.slow:
            torch.randn(300, 300) @ torch.randn(300, 3000)
        return torch.full((len(x_nchw), 2), self.value)


@pytest.fixture(autouse=True)
def fast_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)


def test_the_faster_format_is_taken() -> None:
    assert choose_precision("auto", False, Counted(torch.float32), CARD) == "bf16"
    assert choose_precision("auto", False, Counted(torch.bfloat16), CARD) == "fp32"


def test_a_cpu_without_bfloat16_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    assert choose_precision("auto", False, Counted(torch.float32), CARD) == "fp32"


def test_an_output_that_is_no_number_is_not_worth_the_speed() -> None:
    model = Counted(torch.float32, float("nan"))
    assert choose_precision("auto", False, model, CARD) == "fp32"


def test_what_the_user_asks_for_is_taken_and_a_gpu_computes_in_bf16() -> None:
    assert choose_precision("fp32", True, Counted(torch.float32), CARD) == "fp32"
    assert choose_precision("auto", True, Counted(torch.bfloat16), CARD) == "bf16"


def test_batch_norm_keeps_statistics_that_bfloat16_cannot_hold() -> None:
    """It has 8 digits: 257 would become 256, and 256 - 257 would be 0."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)).eval()
    nn.init.ones_(network[0].weight)
    nn.init.constant_(network[1].running_mean, 257.0)
    short = convert_precision(network, "bf16", torch.device("cpu"))
    x_nchw = torch.full((1, 1, 2, 2), 256.0, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert short(x_nchw).unique().tolist() == [-1.0]
    assert network[0].weight.dtype == torch.bfloat16


def test_weights_are_short_on_a_cpu_and_stay_long_on_a_gpu() -> None:
    cpu = convert_precision(standin.flair_threshold_model(), "bf16", torch.device("cpu"))
    assert {parameter.dtype for parameter in cpu.parameters()} == {torch.bfloat16}
    gpu = convert_precision(standin.flair_threshold_model(), "bf16", torch.device("cuda"))
    assert {parameter.dtype for parameter in gpu.parameters()} == {torch.float32}
