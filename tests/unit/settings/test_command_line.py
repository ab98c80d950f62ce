"""Settings from flags and files, and the exit codes of a job."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from segmodel.core.errors import ConfigError, GeometryError, SegmodelError
from segmodel.settings.cli import parse, run
from segmodel.settings.ingest import IngestConfig
from segmodel.settings.segment import SegmentConfig
from segmodel.settings.training import FindLrConfig, TrainConfig
from tests.support.settings import train_config

TRAIN = ["--archive", "/data/archive", "--output", "/data/model"]


def write_yaml(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text)
    return str(path)


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
