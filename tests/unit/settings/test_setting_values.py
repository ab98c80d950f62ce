"""Values of settings: which are allowed, and how they are completed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from segmodel.core.errors import ConfigError
from segmodel.settings.base import absolute_uri, parse_workers
from segmodel.settings.demo import DemoConfig
from segmodel.settings.ingest import IngestConfig
from segmodel.settings.training import CompareConfig
from tests.support.settings import segment_config, train_config


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"archive": ""}, "--archive"),
        ({"image_size": 0}, "--image-size"),
        ({"image_size": 100}, "--image-size"),
        ({"arch": "classical", "dropout": 1.0}, "--dropout"),
        ({"arch": "classical", "dropout": -0.1}, "--dropout"),
        ({"arch": "classical", "width": 0}, "--width"),
        ({"arch": "dynamic", "width": 32}, "--width is for --arch classical"),
        ({"arch": "dynamic", "dropout": 0.5}, "--dropout is for --arch classical"),
        ({"epochs": 0}, "--epochs"),
        ({"epochs": []}, "--epochs"),
        ({"epochs": [5, 0]}, "--epochs"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": [1e-3, 0.0], "epochs": [1, 1]}, "--lr"),
        ({"lr": [1e-3, 1e-4]}, "2 values of --lr for 1 of --epochs"),
        ({"lr": float("nan")}, "--lr"),
        ({"lr": float("inf")}, "--lr"),
        ({"weight_decay": -1e-9}, "--weight-decay"),
        ({"workers": "0"}, "--workers"),
        ({"batch_size": 0}, "--batch-size"),
        ({"batch_size": 1, "workers": "2"}, "--batch-size"),
        ({"batch_size": 7, "workers": "1:4", "accumulate": 2}, "--batch-size"),
        ({"accumulate": 0}, "--accumulate"),
        ({"accumulate": 3, "batch_size": 16}, "--accumulate 3 must divide --batch-size 16"),
        ({"image_size": 32, "batch_size": 4, "workers": "1:4"}, "--image-size 32 leaves one pixel"),
        ({"clip_norm": -1.0}, "--clip-norm"),
        ({"max_zoom": 0.9}, "--max-zoom"),
        ({"max_gain": float("inf")}, "--max-gain"),
        ({"missing_sequences": -0.1}, "--missing-sequences"),
        ({"missing_sequences": 1.1}, "--missing-sequences"),
        ({"missing_sequences": float("nan")}, "--missing-sequences"),
        ({"max_failures": -1}, "--max-failures"),
        ({"sync_batchnorm": True, "cpu": True}, "--sync-batchnorm"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite"),
        ({"seed": -1}, "--seed"),
        ({"gpu": True, "cpu": True}, "--gpu and --cpu"),
    ],
)
def test_a_training_that_cannot_work_is_refused_with_the_flag_to_change(
    changes: dict[str, Any], flag: str
) -> None:
    with pytest.raises(ConfigError, match=flag):
        train_config(**changes)


def test_a_comparison_takes_settings_of_the_classical_network_too() -> None:
    config = CompareConfig(archive="/data/archive", output="/data/both", width=16, dropout=0.5)
    assert (config.arch, config.width) == ("dynamic", 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 32},
        {"weight_decay": 0.0},
        {"arch": "classical", "dropout": 0.0},
        {"arch": "classical", "dropout": 0.99},
        {"batch_size": 3, "workers": "3"},
        {
            "clip_norm": 0.0,
            "max_rotation": 0.0,
            "max_zoom": 1.0,
            "max_gain": 1.0,
            "missing_sequences": 0.0,
        },
        {"missing_sequences": 1.0},
    ],
)
def test_the_ends_of_the_allowed_ranges_of_a_training_are_allowed(changes: dict[str, Any]) -> None:
    config = train_config(**changes)
    assert {name: getattr(config, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"checkpoint": ""}, "--checkpoint"),
        ({"workers": "many"}, "--workers"),
        ({"batch_size": 0}, "--batch-size"),
        ({"threshold": 0.0}, "--threshold"),
        ({"threshold": 1.0}, "--threshold"),
        ({"threshold": float("nan")}, "--threshold"),
        ({"max_quarantined": -0.01}, "--max-quarantined"),
        ({"max_quarantined": 1.01}, "--max-quarantined"),
        ({"min_volume_ml": 0.0}, "--min-volume-ml"),
        ({"min_volume_ml": float("nan")}, "--min-volume-ml"),
        ({"gpu": True, "cpu": True}, "--gpu and --cpu"),
    ],
)
def test_a_segmentation_that_cannot_work_is_refused_with_the_flag_to_change(
    changes: dict[str, Any], flag: str
) -> None:
    with pytest.raises(ConfigError, match=flag):
        segment_config(**changes)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"format": "lgg"}, "--source"),
        ({"format": "phantom", "source": "/scans"}, "--source"),
        ({"format": "phantom", "spacing_mm": (1.0, 0.0, 1.0)}, "--spacing-mm"),
        ({"format": "phantom", "spacing_mm": (1.0, 1.0, float("nan"))}, "--spacing-mm"),
        ({"format": "phantom", "spacing_mm": (1.0, 1.0)}, "--spacing-mm"),
        ({"format": "phantom", "phantom_patients": 0}, "--phantom-patients"),
        ({"format": "phantom", "phantom_slices": 0}, "--phantom-slices"),
        ({"format": "phantom", "phantom_size": 31}, "--phantom-size"),
        ({"format": "phantom", "seed": -1}, "--seed"),
        ({"format": "phantom", "append": True, "overwrite": True}, "--append and --overwrite"),
    ],
)
def test_an_ingest_that_cannot_work_is_refused_with_the_flag_to_change(
    changes: dict[str, Any], flag: str
) -> None:
    with pytest.raises(ConfigError, match=flag):
        IngestConfig(archive="/data/archive", **changes)


def test_the_demo_is_refused_a_remote_folder() -> None:
    with pytest.raises(ConfigError, match="--output of the demo must be a local folder"):
        DemoConfig(output="s3://bucket/demo")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        train_config().epochs = 3  # type: ignore[misc]


def test_a_relative_path_becomes_absolute_and_a_uri_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute_uri("runs/../tonight") == f"{tmp_path}/tonight"
    assert absolute_uri("~/tonight") == "/home/someone/tonight"
    assert absolute_uri("s3://mri/runs/") == "s3://mri/runs"
    assert segment_config(output="tonight").output == f"{tmp_path}/tonight"
    assert (
        train_config(encoder_weights="resnet34.pth").encoder_weights == f"{tmp_path}/resnet34.pth"
    )
    assert train_config().encoder_weights == "imagenet"


@pytest.mark.parametrize(
    ("text", "bounds"), [("1", (1, 1)), ("4", (4, 4)), ("2:8", (2, 8)), ("3:3", (3, 3))]
)
def test_workers_are_a_number_or_a_range(text: str, bounds: tuple[int, int]) -> None:
    assert parse_workers(text) == bounds


@pytest.mark.parametrize("text", ["", "0", "-1", "0:4", "8:2", "2:4:8", "two", ":4", "1.5"])
def test_workers_that_are_no_range_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--workers takes N or MIN:MAX"):
        parse_workers(text)
