"""What healthy jobs print, run as a user runs them, beside another Ray on the same machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALARMING = re.compile(
    r"warn|error|traceback|exception|fail|died|dead|deprecat|does not answer|^\W*\[?[^\]]* E \d",
    re.IGNORECASE,
)


def printed_by(job: str, *flags: str | Path) -> str:
    """Both streams of `python -m jobs.JOB FLAGS`, without what the tests' own Ray put into the environment."""
    command = [sys.executable, "-m", f"jobs.{job}", *map(str, flags)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=kept | {"RAY_TMPDIR": os.environ["RAY_TMPDIR"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "2026-01-01 10:00:00,000\tWARNING authentication_token_setup.py:85 -- Token authentication",
        "[2026-01-01 10:00:00,000 E 23 23] core_worker.cc:609: has constructor arguments in",
        "Traceback (most recent call last):",
        "the Ray cluster at 10.0.0.1:6379 does not answer",
    ],
)
def test_lines_that_a_user_would_ask_about_are_recognised(line: str) -> None:
    assert ALARMING.search(line)


@pytest.mark.timeout(500)
@pytest.mark.usefixtures("local_ray")
def test_healthy_jobs_print_no_line_that_looks_like_an_error(
    tmp_path: Path, ray_folder: Path
) -> None:
    archive, model, run = tmp_path / "archive", tmp_path / "trained", tmp_path / "run"
    current = ray_folder / "ray" / "ray_current_cluster"  # as a killed cluster leaves it
    current.write_text("127.0.0.1:1")
    printed = printed_by(
        "ingest", "--format", "phantom", "--archive", archive, "--phantom-patients", "5",
        "--phantom-slices", "24", "--phantom-size", "32",
    )  # fmt: skip
    current.unlink()
    printed += printed_by(
        "train", "--archive", archive, "--output", model, "--arch", "classical", "--width", "4",
        "--image-size", "32", "--epochs", "2", "--batch-size", "16", "--workers", "2",
    )  # fmt: skip
    printed += printed_by("segment", "--archive", archive, "--checkpoint", model, "--output", run)
    assert [line for line in printed.splitlines() if ALARMING.search(line)] == []
    assert printed.count("train loss") == 1
    assert "120 of 120 slices segmented" in printed
