from typing import Any

import pytest
import torch

from segmodel.core.errors import CheckpointError
from segmodel.models.registry import ModelSettings, build_model

DYNAMIC = ModelSettings(arch="dynamic", channels=3, encoder="resnet18")
CLASSICAL = ModelSettings(arch="classical", channels=3, width=2)


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


@pytest.mark.parametrize(
    ("arch", "encoder"), [("dynamic", None), ("dynamic", "resnet9"), ("vision", "resnet18")]
)
def test_an_unknown_network_is_refused(arch: Any, encoder: str | None) -> None:
    with pytest.raises(CheckpointError, match=f"unknown network: arch '{arch}'"):
        build_model(ModelSettings(arch=arch, channels=3, encoder=encoder))
