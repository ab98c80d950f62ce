"""Requests that cannot be done as asked say what to do instead."""

import io
import sys
from pathlib import Path

import pytest

from jobs import report, summarize
from segmodel.core.errors import ConfigError
from segmodel.settings import cli
from segmodel.settings.base import absolute_uri
from segmodel.settings.evaluate import EvaluateConfig
from segmodel.settings.export import ExportConfig
from segmodel.settings.segment import SegmentConfig
from segmodel.settings.training import CompareConfig, TrainConfig

COPY = "/tmp/ray/session_2026-11-27_1/runtime_resources/working_dir_files/_ray_pkg_0a1b"


def segment(**changes: str) -> SegmentConfig:
    return SegmentConfig(**{"archive": "/a", "checkpoint": "/m", "output": "/o", **changes})


@pytest.mark.parametrize("name", ["output", "archive", "checkpoint"])
def test_a_folder_in_the_copy_of_a_submitted_job_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{name} .*deleted after the job.*s3://") as refused:
        segment(**{name: f"{COPY}/runs/tonight"})
    assert refused.value.exit_code == 2


def test_a_relative_path_of_a_submitted_job_lies_in_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="absolute path"):
        segment(output="runs/tonight")
    with pytest.raises(ConfigError, match="--segmentation"):
        EvaluateConfig(archive="/a", segmentation="runs/x", output="/o")
    with pytest.raises(ConfigError, match="--checkpoints"):
        CompareConfig(archive="/a", output="/o", checkpoints=["runs/x", "/m"])
    assert segment().output == "/o"


@pytest.mark.parametrize(
    "uri",
    [
        "s3:/b/x",
        "S3://b/x",
        "gs://b/x",
        "az://b/x",
        "hdfs://h/x",
        "foo://x",
        "s3://a::b",
        "s3://",
        "http://host/x",
    ],
)
def test_a_store_that_is_not_supported_gets_one_message(uri: str) -> None:
    with pytest.raises(
        ConfigError, match=r"neither a path nor a URI that is supported.*s3://bucket"
    ):
        absolute_uri(uri)


@pytest.mark.parametrize("uri", ["s3://b/x", "/data/a:b", "file:///data"])
def test_paths_and_s3_are_taken(uri: str) -> None:
    assert absolute_uri(uri) == uri


REQUIRED = ["--archive", "/a", "--checkpoint", "/m", "--output", "/o"]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_settings_in_another_encoding_say_so(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("output: /données\n", encoding=encoding)
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        cli.parse(SegmentConfig, [*REQUIRED, "--config", str(file)], None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("threshold: 0.4\nthreshold: 0.6\n", "'threshold' comes twice"),
        ("tta: [true\n", "line 1, column 6"),
        ("threshold 0.4\n", "lines such as"),
        ("# nothing yet\n", "lines such as"),
    ],
)
def test_a_file_that_is_no_yaml_of_settings_is_named_with_the_fault(
    tmp_path: Path, text: str, told: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        cli.parse(SegmentConfig, [*REQUIRED, "--config", str(file)], None)
    assert str(file) in str(refused.value)
    assert told in str(refused.value)


def test_what_a_file_turns_on_a_flag_turns_off(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("tta: true\n")
    given = [*REQUIRED, "--config", str(file)]
    assert cli.parse(SegmentConfig, given, None).tta
    assert not cli.parse(SegmentConfig, [*given, "--no-tta"], None).tta
    assert cli.parse(SegmentConfig, [*REQUIRED, "--tta"], None).tta


def test_flags_of_a_training_mean_nothing_to_trained_networks() -> None:
    where = {"archive": "/a", "output": "/o", "checkpoints": ["/x", "/y"]}
    with pytest.raises(ConfigError, match="--epochs is for a training"):
        CompareConfig(**where, epochs=5)
    assert CompareConfig(**where, precision="fp32", overwrite=True).checkpoints == ["/x", "/y"]


def test_a_comparison_of_both_networks_refuses_one() -> None:
    with pytest.raises(ConfigError, match="--arch is for a training"):
        CompareConfig(archive="/a", output="/o", arch="classical")


def test_an_id_that_a_terminal_cannot_show_does_not_end_a_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)

    def main(argv: object) -> int:
        print("patient Müller")
        return 0

    assert cli.run(main) == 0
    terminal.flush()
    assert terminal.buffer.getvalue() == b"patient M\\xfcller\n"


def test_a_file_in_place_of_a_folder_is_refused_with_its_flag(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("of the user")
    places = {"archive": str(tmp_path / "archive"), "segmentation": str(tmp_path / "run")}
    for output in ("notes.txt", "notes.txt/below"):
        with pytest.raises(ConfigError, match=r"--output .*notes\.txt is a file; give a folder"):
            EvaluateConfig(**places, output=str(tmp_path / output))
    network = str(tmp_path / "notes.txt")
    assert ExportConfig(format="onnx", checkpoint="model", output=network).output == network


@pytest.mark.parametrize("flag", ["archive", "segmentation"])
def test_an_output_that_is_a_folder_the_job_reads_is_refused(flag: str) -> None:
    places = {"archive": "/a", "segmentation": "/run"}
    said = rf"--output .* is the folder of --{flag}"
    with pytest.raises(ConfigError, match=said):
        ExportConfig(format="nifti", **places, output=places[flag] + "/")
    with pytest.raises(ConfigError, match=said):
        EvaluateConfig(**{**places, "segmentation": "/other,/run"}, output=places[flag])
    with pytest.raises(ConfigError, match="is the folder of --archive"):
        segment(output="/a")
    with pytest.raises(ConfigError, match="is the folder of --archive"):
        TrainConfig(archive="/a", output="/a")
    with pytest.raises(ConfigError, match="is the folder of --checkpoints"):
        CompareConfig(archive="/a", output="/m", checkpoints=["/m", "/n"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tracking", "none"], "tracking"),
        (["--track-patients"], "track_patients"),
        (["--tracking=neptune", "--track-patients"], "tracking, track_patients"),
    ],
)
def test_a_job_that_records_nothing_says_that_tracking_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match="holds no results"):
        report.main(["--run", str(tmp_path), *flags])
    assert capsys.readouterr().out == f"not used by this job: {said}\n"
    for job in (report, summarize):
        with pytest.raises(SystemExit):
            job.main(["--help"])
        assert "track" not in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--checkpoint", "null"], ["--checkpoint=~"]])
def test_a_text_that_yaml_reads_as_no_value_is_refused_and_not_ignored(flags: list[str]) -> None:
    places = ["--format=nifti", "--archive=/a", "--segmentation=/run", "--output=/o"]
    with pytest.raises(ConfigError, match="--checkpoint: null and ~ mean no value"):
        cli.parse(ExportConfig, [*places, *flags], None)


def test_ids_on_the_command_line_stay_as_they_are_written() -> None:
    places = ["--format=nifti", "--archive=/a", "--segmentation=/run", "--output=/o"]
    ids = ("007", "1e5", "NA", "null", "a,b", "[x]")
    assert cli.parse(ExportConfig, [*places, "--patients", *ids], None).patients == ids
    with pytest.raises(ConfigError, match="--patients must name patients, got an empty id"):
        cli.parse(ExportConfig, [*places, "--patients", ""], None)


@pytest.mark.parametrize("value", ["a", "7", "null", "a,b"])
def test_a_list_in_a_file_that_is_no_list_is_refused(tmp_path: Path, value: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"patients: {value}\n")
    places = ["--format=nifti", "--archive=/a", "--segmentation=/run", "--output=/o"]
    with pytest.raises(ConfigError, match=r"patients takes a list such as \[A, B\]"):
        cli.parse(ExportConfig, [*places, "--config", str(file)], None)
