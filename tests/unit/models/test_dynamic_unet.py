from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from fastai.vision.learner import create_body
from fastai.vision.models.unet import DynamicUnet

from segmodel.models import dynamic_unet
from segmodel.models.registry import ModelSettings, build_model

DYNAMIC = ModelSettings(arch="dynamic", channels=3, encoder="resnet18")


@pytest.fixture(scope="module")
def with_and_without_hooks() -> tuple[torch.nn.Module, torch.nn.Module]:
    """fastai's DynamicUnet as it is, and a copy of it made free of hooks."""
    torch.manual_seed(0)
    plain = DynamicUnet(
        create_body(torchvision.models.resnet18(weights=None), n_in=3, pretrained=False),
        2,
        (64, 64),
    ).eval()
    model = build_model(DYNAMIC).eval()
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    return plain, model


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 96, 32)])
def test_without_hooks_the_logits_are_those_of_fastai_s_network_to_the_bit(
    shape: tuple[int, ...], with_and_without_hooks: tuple[torch.nn.Module, torch.nn.Module]
) -> None:
    plain, model = with_and_without_hooks
    x = torch.rand(shape)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x).as_subclass(torch.Tensor))


def test_without_hooks_a_network_is_compiled_as_one_graph(
    with_and_without_hooks: tuple[torch.nn.Module, torch.nn.Module],
) -> None:
    _, model = with_and_without_hooks
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), model(x))


def test_without_hooks_threads_share_a_network(
    with_and_without_hooks: tuple[torch.nn.Module, torch.nn.Module],
) -> None:
    _, model = with_and_without_hooks
    inputs = [torch.rand(1, 3, 64, 64) for _ in range(8)]

    def logits(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(x)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(logits, inputs))
    assert all(torch.equal(logits(x), found) for x, found in zip(inputs, together, strict=True))


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_channels_filled_up_for_a_gpu_change_neither_logits_nor_gradients(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = build_model(ModelSettings(arch="dynamic", channels=channels, encoder="resnet18")).eval()
    x = torch.rand(2, channels, 64, 64)
    logits, gradients = [], []
    for extra in (0, -channels % 8):
        monkeypatch.setattr(dynamic_unet, "_padding_channels", lambda x_nchw, extra=extra: extra)
        logits.append(model(x))
        gradients.append(torch.autograd.grad(logits[-1].square().mean(), list(model.parameters())))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)
    for plain, filled in zip(*gradients, strict=True):
        torch.testing.assert_close(filled, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def test_the_dynamic_network_has_no_dropout() -> None:
    kinds = {type(module).__name__ for module in build_model(DYNAMIC).modules()}
    assert not [kind for kind in kinds if "dropout" in kind.lower()]
