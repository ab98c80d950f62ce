"""What a job says about flags and settings that do not fit."""

from pathlib import Path
from typing import Any

import pytest

from segmodel.settings import cli
from segmodel.settings.ingest import IngestConfig
from segmodel.settings.training import CompareConfig, TrainConfig

TRAIN = ["--archive", "/a", "--output", "/o"]
INGEST = ["--archive", "/a", "--format", "phantom"]


@pytest.mark.parametrize(
    ("config", "flags", "told"),
    [
        (TrainConfig, TRAIN[:2], "missing: --output"),
        (
            TrainConfig,
            [*TRAIN, "--epoch-s", "3"],
            "no such flag: --epoch-s; did you mean --epochs?",
        ),
        (TrainConfig, [*TRAIN, "--zzz"], "no such flag: --zzz"),
        (
            TrainConfig,
            [*TRAIN, "--epochs", "one"],
            "--epochs takes a whole number or a list such as [A,B] without spaces, got one",
        ),
        (
            TrainConfig,
            [*TRAIN, "--gpu", "yes"],
            "no flag takes this: yes (a switch such as --overwrite takes no value)",
        ),
        (TrainConfig, [*TRAIN, "--arch", "vit"], "--arch takes dynamic or classical, got vit"),
        (
            TrainConfig,
            [*TRAIN, "--config", "/nowhere"],
            "--config: File does not exist: '/nowhere'",
        ),
        (
            IngestConfig,
            ["--archive", "/a", "--format", "tiff"],
            "--format takes lgg, nifti, dicom or phantom, got tiff",
        ),
        (
            IngestConfig,
            [*INGEST, "--spacing-mm", "1", "1", "wide"],
            "--spacing-mm takes 3 numbers, got wide",
        ),
        (
            IngestConfig,
            [*INGEST, "--max-rejected", "lots"],
            "--max-rejected takes a number, got lots",
        ),
        (
            CompareConfig,
            [*TRAIN, "--checkpoints", "a,b"],
            "--checkpoints takes a list such as [A,B] without spaces, got a,b",
        ),
    ],
)
def test_a_wrong_request_is_told_in_flags_and_words(
    config: type[Any], flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parse(config, flags, None)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {told}"


@pytest.mark.parametrize(("key", "meant"), [("epoch", "epochs"), ("image-sise", "image_size")])
def test_a_key_that_does_not_exist_brings_the_most_similar_one(
    key: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"{key}: 7\n")
    with pytest.raises(SystemExit):
        cli.parse(TrainConfig, [*TRAIN, "--config", str(file)], None)
    assert f"no such setting: {key}; did you mean {meant}?" in capsys.readouterr().err
