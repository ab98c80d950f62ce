"""What `--help` of each job shows."""

import dataclasses
import importlib
import re

import pytest

from segmodel.settings import flags

JOBS = [
    "compare",
    "demo",
    "evaluate",
    "export",
    "find_lr",
    "ingest",
    "report",
    "segment",
    "summarize",
    "train",
]


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def help_of(job: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"jobs.{job}").main(["--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def config_of(job: str) -> type:
    found = vars(importlib.import_module(f"jobs.{job}")).values()
    (config,) = (value for value in found if dataclasses.is_dataclass(value))
    return config


@pytest.mark.parametrize("job", JOBS)
def test_every_setting_of_a_job_is_in_one_group(job: str) -> None:
    placed = [name for group in flags.GROUPS.values() for name in group]
    assert len(placed) == len(set(placed))
    assert {field.name for field in dataclasses.fields(config_of(job))} <= set(placed)


def test_no_group_names_a_setting_that_no_job_has() -> None:
    known = {field.name for job in JOBS for field in dataclasses.fields(config_of(job))}
    assert {name for group in flags.GROUPS.values() for name in group} <= known


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("job", JOBS)
def test_help_names_no_types_and_says_what_the_job_does(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_of(job, capsys)
    assert "Union" not in shown
    assert "type:" not in shown
    usage, empty, about = shown.splitlines()[:3]
    assert usage.startswith(f"usage: python -m jobs.{job} ")
    assert usage.endswith("[options]")
    assert (empty, about[-1]) == ("", ".")
    assert re.search(rf"^Example: python -m jobs\.{job}", shown, re.MULTILINE)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("job", JOBS)
def test_a_setting_takes_three_lines_at_most(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = re.split(r"\n  (?=-)", help_of(job, capsys))[1:]
    lines = [setting.partition("\n\n")[0].count("\n") + 1 for setting in settings]
    assert max(lines) <= 3
    assert lines.count(1) >= 0.7 * len(lines)


@pytest.mark.usefixtures("wide")
def test_help_of_a_training_shows_groups_units_and_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = help_of("train", capsys)
    network = shown.partition("\nNetwork:\n")[2].partition("\n\n")[0]
    (size,) = (line for line in network.splitlines() if "--image-size" in line)
    assert size.split()[:2] == ["--image-size", "PIXELS"]
    assert size.endswith("a multiple of 32. (default 256)")
    assert "--archive PATH_OR_URI" in shown.partition("\nInput and output:\n")[2]
    assert "--[no-]compile" in shown


def test_help_of_a_comparison_leaves_out_the_choice_of_one_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = help_of("compare", capsys)
    assert "--arch " not in shown
    assert "--encoder " in shown
