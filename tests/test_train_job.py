"""jobs.train from end to end on a real local Ray, and what it refuses."""

import csv
import json
import math
from pathlib import Path

import pytest

from jobs import segment, train
from segmodel import checkpoint, storage
from segmodel.config import IngestConfig
from segmodel.errors import ArchiveError, CheckpointError, ConfigError, TrainingError
from segmodel.ingestion import ingest

pytestmark = pytest.mark.usefixtures("local_ray")

PATIENTS, SLICES, SIZE = 5, 24, 32


@pytest.fixture(scope="module")
def archive(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("phantom") / "archive")
    ingest(
        IngestConfig(
            archive=uri, format="phantom", phantom_patients=PATIENTS, phantom_slices=SLICES, phantom_size=SIZE, tracking="none"
        )
    )
    return uri


def command(archive: str, output: Path | str, *more: str) -> list[str]:
    return ["--archive", archive, "--output", str(output), "--image-size", str(SIZE), "--batch-size", "16", *more]


def test_two_workers_train_into_s3_and_their_checkpoint_segments(
    archive: str, s3_bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = storage.join(s3_bucket, "trained")
    more = ["--encoder", "resnet18", "--encoder-weights", "none", "--epochs", "2", "--lr", "1e-3", "--workers", "2"]
    assert train.main([*command(archive, output), *more]) == 0
    printed = capsys.readouterr().out
    assert "epoch  train loss  valid loss    Dice    time" in printed

    history = list(csv.DictReader(storage.read_bytes(storage.join(output, "history.csv")).decode().splitlines()))
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert all(math.isfinite(float(row[name])) for row in history for name in ("train_loss", "valid_loss", "dice"))
    assert float(history[1]["train_loss"]) < float(history[0]["train_loss"])

    split = json.loads(storage.read_bytes(storage.join(output, "split.json")))
    assert len(split["valid"]) == 1  # a fifth of 5
    assert not set(split["train"]) & set(split["valid"])
    best = checkpoint.read_card(storage.join(output, "best"))
    last = checkpoint.read_card(storage.join(output, "last"))
    assert best.training_patients == tuple(split["train"])
    assert best.metrics["dice"] == max(float(row["dice"]) for row in history)
    assert last.metrics["epoch"] == 2
    assert storage.list_files(output) == ["history.csv", "split.json"]
    assert storage.list_files(storage.join(output, "last")) == ["model.json", "model.safetensors", "trainer.pt"]
    assert storage.exists(storage.join(output, ".neptune/offline"))
    assert not storage.exists(storage.join(output, ".ray"))

    run = tmp_path / "run"
    assert segment.main(["--archive", archive, "--checkpoint", output, "--output", str(run)]) == 0
    assert f"{PATIENTS * SLICES} of {PATIENTS * SLICES} slices segmented" in capsys.readouterr().out
    offline = list((run / ".neptune" / "offline").iterdir())
    assert len(offline) == 1  # tracked without a server

    with pytest.raises(ConfigError, match="already holds a training"):
        train.main([*command(archive, output), *more])


def test_a_learning_rate_that_blows_up_ends_with_a_message(archive: str, tmp_path: Path) -> None:
    more = ["--arch", "classical", "--epochs", "1", "--lr", "1e30", "--batch-size", "32", "--tracking", "none"]
    with pytest.raises(TrainingError, match=r"the loss became \S+ in epoch 1, step \d+; train with a smaller --lr"):
        train.main([*command(archive, tmp_path / "model"), *more])


def test_one_patient_cannot_be_split(tmp_path: Path) -> None:
    lonely = str(tmp_path / "one")
    ingest(IngestConfig(archive=lonely, format="phantom", phantom_patients=1, phantom_size=32, tracking="none"))
    with pytest.raises(ArchiveError, match="at least two annotated patients"):
        train.main(command(lonely, tmp_path / "model"))


def test_requests_that_cannot_work_are_refused_before_anything_starts(archive: str, tmp_path: Path) -> None:
    output = tmp_path / "model"
    with pytest.raises(ConfigError, match="only 96 slices to train on"):
        train.main([*command(archive, output), "--batch-size", "1000"])
    with pytest.raises(CheckpointError, match="no such file"):
        train.main([*command(archive, output), "--encoder-weights", str(tmp_path / "missing.pth")])
    with pytest.raises(ArchiveError, match="no archive"):
        train.main(command(str(tmp_path / "nothing"), output))
    assert not output.exists()
