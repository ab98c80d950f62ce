import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from fastai.vision.learner import create_body
from fastai.vision.models.unet import DynamicUnet
from torch import Tensor, nn

from segmodel.core.errors import CheckpointError
from segmodel.models import dynamic_unet
from segmodel.models.dynamic_unet import load_encoder
from segmodel.models.registry import ClassicalUnet, ModelSettings, build_model, count_parameters

DYNAMIC = ModelSettings(arch="dynamic", channels=3, encoder="resnet18")
CLASSICAL = ModelSettings(arch="classical", channels=3, width=2)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = torchvision.models.resnet18(weights=None)
    return model


def encoder_of(model: nn.Module) -> list[Tensor]:
    """Weights of the first and the last convolution of the encoder."""
    layers = list(model.get_submodule("layers.0").modules())
    convolutions = [
        layer for layer in layers if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    ]
    return [convolutions[0].weight, convolutions[-1].weight]


@pytest.mark.parametrize("settings", [DYNAMIC, CLASSICAL])
def test_logits_have_two_classes_and_the_size_of_a_slice_that_is_not_square(
    settings: ModelSettings,
) -> None:
    with torch.inference_mode():
        logits_nchw = build_model(settings).eval()(torch.rand(2, 3, 64, 96))
    assert logits_nchw.shape == (2, 2, 64, 96)
    assert logits_nchw.isfinite().all()


@pytest.mark.parametrize("arch", ["dynamic", "classical"])
def test_a_network_takes_as_many_channels_as_it_was_built_for(arch: Any) -> None:
    encoder = "resnet18" if arch == "dynamic" else None
    model = build_model(ModelSettings(arch=arch, channels=1, encoder=encoder, width=2)).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 1, 32, 32)).shape == (1, 2, 32, 32)


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
        monkeypatch.setattr(dynamic_unet, "_missing_channels", lambda x_nchw, extra=extra: extra)
        logits.append(model(x))
        gradients.append(torch.autograd.grad(logits[-1].square().mean(), list(model.parameters())))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)
    for plain, filled in zip(*gradients, strict=True):
        torch.testing.assert_close(filled, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def test_classical_goes_down_four_poolings_to_28x28x1024_at_448() -> None:
    shapes: list[tuple[int, ...]] = []
    with torch.device("meta"):  # shapes without arithmetic
        model = ClassicalUnet(channels=3)
        for block in model.down:
            block.register_forward_hook(
                lambda module, inputs, output: shapes.append(tuple(output.shape))
            )
        logits_nchw = model(torch.empty(1, 3, 448, 448))
    assert shapes == [
        (1, 64, 448, 448),
        (1, 128, 224, 224),
        (1, 256, 112, 112),
        (1, 512, 56, 56),
        (1, 1024, 28, 28),
    ]
    assert logits_nchw.shape == (1, 2, 448, 448)


def test_classical_has_the_number_of_weights_that_the_paper_s_layers_add_up_to() -> None:
    # width 1, 1 channel; 3x3 convolutions have 9ab+b weights, 2x2 up-convolutions 4ab+b, the head 1*2+2
    down = (10 + 10) + (20 + 38) + (76 + 148) + (296 + 584) + (1168 + 2320)
    up = (16 * 8 * 4 + 8) + (8 * 4 * 4 + 4) + (4 * 2 * 4 + 2) + (2 * 1 * 4 + 1)
    merge = (1160 + 584) + (292 + 148) + (74 + 38) + (19 + 10)
    assert count_parameters(ClassicalUnet(channels=1, width=1)) == down + up + merge + 4


def test_frozen_weights_are_not_counted_as_trainable() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert count_parameters(model) == 6


def test_classical_drops_channels_in_training_only() -> None:
    torch.manual_seed(0)
    model = ClassicalUnet(channels=1, width=4, dropout=0.5)
    x_nchw = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model.train()(x_nchw), model(x_nchw))
        assert torch.equal(model.eval()(x_nchw), model(x_nchw))


def test_gradients_reach_every_weight_of_the_classical_network() -> None:
    torch.manual_seed(0)
    model = ClassicalUnet(channels=1, width=2)
    model(torch.rand(1, 1, 32, 32)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("arch", "encoder"), [("dynamic", None), ("dynamic", "resnet9"), ("vision", "resnet18")]
)
def test_a_network_that_nobody_knows_is_refused(arch: Any, encoder: str | None) -> None:
    with pytest.raises(CheckpointError, match=f"unknown network: arch '{arch}'"):
        build_model(ModelSettings(arch=arch, channels=3, encoder=encoder))


def test_imagenet_without_a_network_tells_how_to_give_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise URLError("name or service not known")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", unreachable)
    with pytest.raises(
        CheckpointError,
        match=r"--encoder-weights /path/to/resnet18-\w+\.pth.*--encoder-weights none",
    ):
        load_encoder(nn.Module(), "resnet18", "imagenet")


def test_imagenet_weights_land_in_the_encoder(monkeypatch: pytest.MonkeyPatch, resnet: Any) -> None:
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights,
        "get_state_dict",
        lambda self, *args, **kwargs: resnet.state_dict(),
    )
    model = build_model(DYNAMIC)
    load_encoder(model, "resnet18", "imagenet")
    assert torch.equal(encoder_of(model)[0], resnet.conv1.weight)


def save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    safetensors.torch.save_file(state, path)


def save_pth(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path)


@pytest.mark.parametrize(
    ("save", "name"), [(save_safetensors, "encoder.safetensors"), (save_pth, "encoder.pth")]
)
def test_encoder_weights_of_a_file_land_in_the_encoder(
    save: Callable[[dict[str, Tensor], Path], None], name: str, tmp_path: Path, resnet: Any
) -> None:
    save(resnet.state_dict(), tmp_path / name)
    model = build_model(DYNAMIC)
    assert not torch.equal(encoder_of(model)[0], resnet.conv1.weight)
    load_encoder(model, "resnet18", f"{tmp_path}/{name}")
    first, last = encoder_of(model)
    assert torch.equal(first, resnet.conv1.weight)
    assert torch.equal(last, resnet.layer4[1].conv2.weight)


def test_the_classifier_of_the_file_does_not_matter(tmp_path: Path, resnet: Any) -> None:
    state = {
        name: value for name, value in resnet.state_dict().items() if not name.startswith("fc.")
    }
    save_safetensors({**state, "fc.weight": torch.zeros(5, 7)}, tmp_path / "encoder.safetensors")
    model = build_model(DYNAMIC)
    load_encoder(model, "resnet18", f"{tmp_path}/encoder.safetensors")
    assert torch.equal(encoder_of(model)[1], resnet.layer4[1].conv2.weight)


def test_an_encoder_of_one_channel_starts_from_the_sum_over_colors(
    tmp_path: Path, resnet: Any
) -> None:
    save_safetensors(resnet.state_dict(), tmp_path / "encoder.safetensors")
    model = build_model(ModelSettings(arch="dynamic", channels=1, encoder="resnet18"))
    load_encoder(model, "resnet18", f"{tmp_path}/encoder.safetensors")
    first, last = encoder_of(model)
    torch.testing.assert_close(first, resnet.conv1.weight.sum(dim=1, keepdim=True))
    assert torch.equal(last, resnet.layer4[1].conv2.weight)


def test_none_leaves_the_encoder_as_it_is() -> None:
    model = nn.Linear(1, 1)
    before = model.weight.clone()
    load_encoder(model, "resnet18", "none")
    assert torch.equal(model.weight, before)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "encoder.pth", tmp_path / "code-was-run"
    torch.save({"conv1.weight": Payload(trace)}, path)
    with pytest.raises(CheckpointError, match="not a state dict that can be read safely"):
        load_encoder(nn.Module(), "resnet18", str(path))
    assert not trace.exists()
    path.write_bytes(pickle.dumps(Payload(trace), protocol=2))
    with pytest.raises(CheckpointError, match="not a state dict that can be read safely"):
        load_encoder(nn.Module(), "resnet18", str(path))
    assert not trace.exists()


@pytest.mark.parametrize("name", ["encoder.pth", "encoder.safetensors"])
@pytest.mark.parametrize("content", [b"", b"neither of the two"])
def test_a_file_of_another_kind_is_refused_by_its_path(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{tmp_path}/{name}: not a state dict"):
        load_encoder(nn.Module(), "resnet18", f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(1)}, "not a resnet18 of torchvision"),
        (
            {"state_dict": {"conv1.weight": torch.zeros(1)}, "epoch": 3},
            "not a resnet18 of torchvision",
        ),
        ({"conv1.weight": torch.zeros(64, 1, 7, 7)}, "do not fit resnet18"),
        ([torch.zeros(1)], "holds a list, expected a state dict"),
        ({0: torch.zeros(1)}, "--encoder-weights"),
    ],
)
def test_a_state_of_another_network_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match=message):
        load_encoder(nn.Module(), "resnet18", f"{tmp_path}/encoder.pth")


def test_a_file_that_is_not_there_is_refused_with_what_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="no such file; give imagenet, none, or a torchvision state dict"
    ):
        load_encoder(nn.Module(), "resnet18", f"{tmp_path}/encoder.pth")
