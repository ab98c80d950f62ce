"""Requests that jobs.train and jobs.find_lr refuse or cannot finish, on a real local Ray."""

from pathlib import Path

import pytest

from jobs import find_lr, train
from segmodel.core.errors import (
    ArchiveError,
    CheckpointError,
    ConfigError,
    LeaseError,
    TrainingError,
)
from segmodel.ingestion.driver import ingest
from segmodel.settings.ingest import IngestConfig
from segmodel.storage import folder_lock
from segmodel.training import driver as training_driver
from tests.support.small_training import SMALL, command, rows_of

pytestmark = pytest.mark.usefixtures("local_ray")

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_range_test_that_suggests_nothing_leaves_its_curve(
    training_archive: str, tmp_path: Path
) -> None:
    flags = [
        *command(training_archive, tmp_path),
        *SMALL,
        "--tracking",
        "none",
        "--lr-min",
        "1e20",
        "--lr-max",
        "1e21",
    ]
    with pytest.raises(
        TrainingError,
        match=r"the learning-rate range test diverged after \d steps: start it from a smaller",
    ):
        find_lr.main(flags)
    assert len(rows_of(str(tmp_path), "lr_find.csv")) >= 1
    assert (tmp_path / "figures/lr_find.png").read_bytes().startswith(PNG)


def test_one_patient_cannot_be_split(tmp_path: Path) -> None:
    lonely = str(tmp_path / "one")
    ingest(
        IngestConfig(
            archive=lonely, format="phantom", phantom_patients=1, phantom_size=32, tracking="none"
        )
    )
    with pytest.raises(ArchiveError, match="at least two annotated patients"):
        train.main(command(lonely, tmp_path / "model"))


def test_requests_that_cannot_work_are_refused_before_anything_starts(
    training_archive: str, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    with pytest.raises(ConfigError, match="only 96 slices to train on"):
        train.main([*command(training_archive, output), "--batch-size", "1000"])
    with pytest.raises(CheckpointError, match="no such file"):
        train.main(
            [*command(training_archive, output), "--encoder-weights", str(tmp_path / "missing.pth")]
        )
    with pytest.raises(ArchiveError, match="no archive"):
        train.main(command(str(tmp_path / "nothing"), output))
    with pytest.raises(ConfigError, match="holds no training; leave --resume out"):
        train.main([*command(training_archive, output), "--encoder-weights", "none", "--resume"])
    assert not output.exists()


def test_a_request_that_is_refused_leaves_the_folder_as_it_was(
    training_archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*command(training_archive, tmp_path), *SMALL, "--tracking", "none"]
    table, figure = tmp_path / "patients.csv", tmp_path / "figures" / "of-the-article.png"
    figure.parent.mkdir()
    for file in (table, figure):
        file.write_text("mine")
    for more in ([], ["--overwrite"]):
        with pytest.raises(ConfigError, match=r"holds patients\.csv but no train\.json"):
            train.main([*flags, *more])
    assert table.read_text() == "mine"
    table.unlink()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="no GPU that Ray can see"):
        train.main([*flags, "--overwrite", "--gpu"])
    with folder_lock.acquire_lock(str(tmp_path)), pytest.raises(LeaseError, match="in use by"):
        train.main([*flags, "--overwrite"])
    monkeypatch.setattr(training_driver, "run_workers", refused)
    with pytest.raises(ConfigError, match="too large for the workers' memory"):
        train.main(flags)
    assert figure.exists()
    with pytest.raises(
        ConfigError, match="too large for the workers' memory"
    ):  # not that the folder is taken
        train.main([*flags, "--batch-size", "8"])


def refused(*_: object) -> None:
    raise ConfigError("too large for the workers' memory")
