import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from segmodel.core.errors import CheckpointError
from segmodel.models.pretrained import load_encoder
from segmodel.models.registry import ModelSettings, build_model

DYNAMIC = ModelSettings(arch="dynamic", channels=3, encoder="resnet18")


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
