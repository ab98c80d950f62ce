"""jobs.demo as a user runs it, with fewer patients: ingest, train and segment in one process.

It starts a Ray of its own beside the Ray of the tests, where a killed cluster has left its name.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.small_demo import PATIENTS

ROOT = Path(__file__).parents[2]
ALARMING = re.compile(
    r"warn|error|traceback|exception|fail|died|dead|deprecat|does not answer|^\W*\[?[^\]]* E \d",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def demo(
    local_ray: None, ray_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The demo's folder, and what it printed to both streams."""
    folder = tmp_path_factory.mktemp("demo")
    current = ray_folder / "ray" / "ray_current_cluster"
    current.write_text("127.0.0.1:1")
    # Without what the tests' own Ray put into the environment.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.small_demo", "--output", str(folder)],
        cwd=ROOT,
        env=kept | {"RAY_TMPDIR": os.environ["RAY_TMPDIR"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
    )
    current.unlink(missing_ok=True)
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


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


def test_healthy_jobs_print_no_line_that_looks_like_an_error(demo: tuple[Path, str]) -> None:
    _, printed = demo
    assert [line for line in printed.splitlines() if ALARMING.search(line)] == []
    assert printed.count("train loss") == 1  # one table
    assert "4/4  picture" in printed


def test_the_demo_ends_with_a_picture_and_says_where_everything_is(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    for path in (
        "contact-sheet.png",
        "run/volumes.csv",
        "run/report.html",
        "run/masks",
        "model/best",
        "archive",
    ):
        assert f"{folder}/{path}" in printed
        assert (folder / path).exists()
    with Image.open(folder / "contact-sheet.png") as picture:
        assert min(picture.size) > 300
    assert len(set(re.findall(r"PHANTOM_\d+", printed))) == PATIENTS
