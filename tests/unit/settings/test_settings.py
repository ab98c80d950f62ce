import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from segmodel.core.errors import ConfigError, GeometryError, SegmodelError
from segmodel.settings.base import absolute_uri, parse_workers
from segmodel.settings.cli import parse, run
from segmodel.settings.demo import DemoConfig
from segmodel.settings.ingest import IngestConfig
from segmodel.settings.segment import SegmentConfig
from segmodel.settings.training import CompareConfig, FindLrConfig, TrainConfig

TRAIN = ["--archive", "/data/archive", "--output", "/data/model"]


def train_config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"archive": "/data/archive", "output": "/data/model", **changes})


def segment_config(**changes: Any) -> SegmentConfig:
    return SegmentConfig(
        **{
            "archive": "/data/archive",
            "checkpoint": "/data/model",
            "output": "/data/run",
            **changes,
        }
    )


def write_yaml(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text)
    return str(path)


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


def test_flags_have_dashes_where_fields_have_underscores() -> None:
    config = parse(
        TrainConfig, [*TRAIN, "--image-size", "64", "--weight-decay", "0.5", "--gpu"], None
    )
    assert config == train_config(image_size=64, weight_decay=0.5, gpu=True)


def test_without_flags_every_setting_has_its_default() -> None:
    assert parse(TrainConfig, TRAIN, None) == train_config()


def test_settings_come_from_a_yaml_file(tmp_path: Path) -> None:
    path = write_yaml(
        tmp_path,
        "archive: /data/archive\noutput: /data/model\nimage_size: 64\ncpu: true\nlr: 1e-3\n",
    )
    assert parse(TrainConfig, ["--config", path], None) == train_config(
        image_size=64, cpu=True, lr=0.001
    )


@pytest.mark.parametrize(
    ("text", "workers", "compiled"),
    [
        ("workers: 2", "2", "auto"),
        ("workers: 1:8", "1:8", "auto"),
        ("workers: '3'\ncompile: on", "3", "on"),
        ("workers: null\ncompile: off", None, "off"),
    ],
)
def test_a_file_needs_no_quotes_where_a_flag_needs_none(
    tmp_path: Path, text: str, workers: str | None, compiled: str
) -> None:
    required = "archive: /data/archive\ncheckpoint: /data/model\noutput: 2024\n"
    config = parse(SegmentConfig, ["--config", write_yaml(tmp_path, required + text)], None)
    assert (config.workers, config.compile, Path(config.output).name) == (workers, compiled, "2024")


def test_a_value_of_the_wrong_kind_in_a_file_exits_with_2_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (
        "gpu: 'on'",
        "epochs: 08:30",
        "workers: [1, 8]",
        "workers: 1.5",
        "compile: maybe",
    ):
        with pytest.raises(SystemExit) as exit_info:
            parse(TrainConfig, [*TRAIN, "--config", write_yaml(tmp_path, text)], None)
        assert exit_info.value.code == 2
        message = capsys.readouterr().err.partition("error:")[2]  # what comes before is the usage
        assert text.split(":")[0] in message


def test_epochs_and_learning_rates_may_be_one_or_a_list_in_flags_and_file(
    tmp_path: Path,
) -> None:
    path = write_yaml(tmp_path, "epochs: [5, 20]\nlr: [5e-3, auto]\n")
    assert parse(TrainConfig, [*TRAIN, "--config", path], None).cycles == ((5, 5e-3), (20, "auto"))
    flags = ["--epochs", "[5, 20]", "--lr", "[5e-3,2e-3]"]
    assert parse(TrainConfig, [*TRAIN, *flags], None).cycles == ((5, 5e-3), (20, 2e-3))
    assert parse(TrainConfig, [*TRAIN, "--epochs", "[5,20]", "--lr", "auto"], None).cycles == (
        (5, "auto"),
        (20, "auto"),
    )
    assert parse(TrainConfig, [*TRAIN, "--epochs", "7", "--lr", "1e-3"], None).cycles == (
        (7, 1e-3),
    )


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"lr_min": 0.0}, "--lr-min"),
        ({"lr_min": 1.0, "lr_max": 0.1}, "--lr-min"),
        ({"lr_max": float("inf")}, "--lr-min"),
        ({"steps": 10}, "--steps"),
    ],
)
def test_a_range_test_that_cannot_work_is_refused_with_the_flag_to_change(
    changes: dict[str, Any], flag: str
) -> None:
    with pytest.raises(ConfigError, match=flag):
        FindLrConfig(archive="/data/archive", output="/data/lr", **changes)


def test_a_flag_after_the_file_wins_over_it(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, "epochs: 7\nseed: 5\n")
    assert parse(TrainConfig, [*TRAIN, "--config", path, "--epochs", "3"], None) == train_config(
        epochs=3, seed=5
    )


def test_the_paper_s_experiment_ships_as_a_file() -> None:
    config = parse(
        TrainConfig, [*TRAIN, "--config", str(Path(__file__).parents[3] / "jobs/paper.yaml")], None
    )
    assert config.cycles == ((5, 5e-3), (20, 2e-3))
    assert (config.arch, config.encoder, config.encoder_weights) == (
        "dynamic",
        "resnet34",
        "imagenet",
    )
    assert (config.image_size, config.batch_size, config.weight_decay, config.loss) == (
        256,
        32,
        0.1,
        "ce",
    )
    assert (config.clip_norm, config.max_gain, config.missing_sequences) == (0, 1, 0)


def test_a_flag_before_the_file_wins_over_it(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, "epochs: 7\nseed: 5\n")
    assert parse(TrainConfig, [*TRAIN, "--epochs", "3", "--config", path], None) == train_config(
        epochs=3, seed=5
    )


def test_an_unknown_key_of_the_file_exits_with_2_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_yaml(tmp_path, "epoch: 7\n")
    with pytest.raises(SystemExit) as exit_info:
        parse(TrainConfig, [*TRAIN, "--config", path], None)
    assert exit_info.value.code == 2
    assert "epoch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--image_sise", "64"], "--image_sise"),
        (["--epochs", "many"], "epochs"),
        (["--arch", "transformer"], "arch"),
        (["--config", "/nowhere/settings.yaml"], "/nowhere/settings.yaml"),
    ],
)
def test_a_flag_that_does_not_exist_or_fit_exits_with_2_and_is_named(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(TrainConfig, [*TRAIN, *flags], None)
    assert exit_info.value.code == 2
    assert named in capsys.readouterr().err


def test_a_missing_required_flag_exits_with_2_and_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(TrainConfig, ["--archive", "/data/archive"], None)
    assert exit_info.value.code == 2
    assert "output" in capsys.readouterr().err


def test_spacing_takes_three_lengths_from_flags_and_from_the_file(tmp_path: Path) -> None:
    ingest = ["--archive", "/data/archive", "--format", "phantom"]
    path = write_yaml(tmp_path, "spacing_mm: [0.5, 0.25, 5]\n")
    assert parse(IngestConfig, [*ingest, "--spacing-mm", "0.5", "0.25", "5"], None).spacing_mm == (
        0.5,
        0.25,
        5.0,
    )
    assert parse(IngestConfig, [*ingest, "--config", path], None).spacing_mm == (0.5, 0.25, 5.0)
    assert parse(IngestConfig, ingest, None).spacing_mm is None


@pytest.mark.parametrize("lengths", [["1", "1"], ["1", "1", "wide"]])
def test_spacing_that_is_not_three_numbers_exits_with_2(lengths: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(
            IngestConfig, ["--archive", "/a", "--format", "phantom", "--spacing-mm", *lengths], None
        )
    assert exit_info.value.code == 2


def test_help_shows_the_command_and_what_each_field_means(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(TrainConfig, ["--help"], "python -m jobs.train --archive URI --output URI")
    shown = " ".join(capsys.readouterr().out.split())
    assert exit_info.value.code == 0
    assert shown.startswith("usage: python -m jobs.train ")
    assert "Peak learning rate, or auto" in shown
    assert "your own server" in shown  # declared in the base class


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("--lr is wrong"), 2), (GeometryError("no spacing"), 1)]
)
def test_an_error_made_for_users_is_one_message_and_its_exit_code(
    error: SegmodelError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise error

    assert run(main) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_setting_that_is_refused_ends_the_job_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda argv: parse(TrainConfig, [*TRAIN, "--epochs", "0"], None).epochs) == 2
    assert capsys.readouterr().err == "error: --epochs must be 1 or more, got 0\n"


def test_a_job_ends_with_the_code_that_its_main_returns() -> None:
    assert run(lambda argv: 3) == 3


def test_an_error_that_nobody_expected_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda argv: 1 // 0)


def test_the_range_test_takes_a_training_s_file_and_says_what_it_leaves_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    paper = ["--config", "jobs/paper.yaml", "--archive", "/a", "--output", "/o"]
    config = parse(FindLrConfig, paper, "python -m jobs.find_lr", not_used=FindLrConfig.NOT_USED)
    assert (config.batch_size, config.weight_decay) == (32, 0.1)
    assert capsys.readouterr().out == "not used by this job: epochs, lr\n"
