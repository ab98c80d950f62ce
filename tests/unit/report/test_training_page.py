"""The page of a training and of a range test, from made-up files of theirs."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from jobs import report
from segmodel.core.dice import EpochResult, Step
from segmodel.core.errors import ConfigError
from segmodel.report import kept_samples, ranking
from segmodel.report.figures import Sample
from segmodel.storage import csv_files
from tests.support import standin
from tests.support.browser import needs_chromium, visit
from tests.unit.report.test_segmentation_page import text_of

EVIL = "<script>alert('x')</script>\"&"


def sample(title: str, predicted: bool) -> Sample:
    """A slice of 8x8 pixels with a square of 2x2 that was annotated."""
    truth = np.zeros((8, 8), bool)
    truth[2:4, 2:4] = True
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    return Sample(title, image, truth, truth.T if predicted else None, "Dice of the patient 0.500")


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A training of two epochs, of which one is done, with a range test."""
    folder = tmp_path / "model"
    standin.save(str(folder / "best"), 32)
    settings = {"epochs": 2, "lr": "auto", "arch": "classical", "archive": "/a", "run_id": "r"}
    settings |= {"encoder": "resnet34", "width": 64}
    (folder / "train.json").write_text(json.dumps(settings))
    (folder / "split.json").write_text(json.dumps({"train": ["T1", "T2"], "valid": [EVIL, "V"]}))
    (folder / "suggested_lr.json").write_text('{"suggested_lr": 0.003}')
    history = [EpochResult(1, 0.9, 0.8, 0.612, 0.55, 12.0, 90.0, 0.5)]
    steps = [Step(n, 1, 0.001 * n, 0.9, 1.0) for n in range(1, 2001)]
    patients = [
        {"patient_id": "V", "slices": 3, "dice": 0.75, "tumor_voxels": 20},
        {"patient_id": EVIL, "slices": 3, "dice": 0.25, "tumor_voxels": 1200},
    ]
    rates = [
        {"lr": 1e-5 * 2**n, "loss": 1.0 - n / 15, "smoothed_loss": 1.0 - n / 20} for n in range(12)
    ]
    for name, rows in (
        ("history", [asdict(one) for one in history]),
        ("steps", [asdict(one) for one in steps]),
        ("patients", patients),
        ("lr_find", rates),
    ):
        csv_files.publish_csv(str(folder / f"{name}.csv"), rows)
    kept_samples.publish(str(folder / kept_samples.SAMPLES), [sample("T1", predicted=False)])
    kept_samples.publish(
        str(folder / kept_samples.PREDICTIONS),
        [sample("best: V", predicted=True), sample(f"worst: {EVIL}", predicted=True)],
    )
    return folder


def page_of(folder: Path, *flags: str) -> str:
    assert report.main([f"--run={folder}", "--tracking=none", *flags]) == 0
    return (folder / "report.html").read_text()


def test_the_page_of_a_training_says_what_it_came_to(training: Path) -> None:
    text = text_of(page_of(training))
    for words in (
        "0.612 Dice of all validation voxels",
        "0.500 mean of those with tumor",
        "1 of 2 best epoch",
        "1 of 2 epochs are done.",
        "best: epoch 1, Dice 0.612",
        "suggestion 3.0e-03",
        "worst: <script>alert('x')</script>\"& · Dice of the patient 0.500",
        "<script>alert('x')</script>\"& 0.250 1,200 3 V 0.750 20 3",  # the lowest Dice first
        "1 0.9000 0.8000 0.6120 0.5500 0.5000",
        "Training patients 2",
        "arch classical",
        "pre-contrast, FLAIR, post-contrast",
        "torch",
    ):
        assert words in text, words
    assert "width 64" in text
    assert "resnet34" not in text  # the classical network has none


def test_ids_with_markup_are_text(training: Path) -> None:
    page = page_of(training)
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(" in page


def test_a_long_schedule_stays_small(training: Path) -> None:
    steps = [asdict(Step(n, 1, 0.001, 0.9, 1.0)) for n in range(1, 30_001)]
    csv_files.publish_csv(str(training / "steps.csv"), steps)
    assert len(page_of(training)) < 300_000


def test_pictures_can_be_left_out(training: Path) -> None:
    assert page_of(training).count("<img") == 3
    page = page_of(training, "--without-pictures")
    assert "<img" not in page
    assert "0.612" in page


def test_a_range_test_has_a_page_of_its_own(training: Path) -> None:
    (training / "train.json").rename(training / "find_lr.json")
    for name in ("history.csv", "steps.csv", "patients.csv", kept_samples.PREDICTIONS):
        (training / name).unlink()
    text = text_of(page_of(training))
    assert "Learning-rate range test model" in text
    assert "3.0e-03 suggested learning rate" in text
    assert "Curves" not in text


def test_a_training_without_a_whole_epoch_has_nothing_to_show(training: Path) -> None:
    for name in ("history.csv", "lr_find.csv"):
        (training / name).unlink()
    with pytest.raises(ConfigError, match="no epoch is finished yet"):
        page_of(training)


def test_samples_come_back_as_they_were_kept(tmp_path: Path) -> None:
    uri = str(tmp_path / "samples.parquet")
    kept = [sample("A", predicted=True), sample("B", predicted=False)]
    kept_samples.publish(uri, kept)
    for before, after in zip(kept, kept_samples.read(uri), strict=True):
        assert (after.title, after.note) == (before.title, before.note)
        assert (after.image_hw == before.image_hw).all()
        assert (after.truth_hw == before.truth_hw).all()
        assert (after.prediction_hw is None) == (before.prediction_hw is None)
    assert kept_samples.read(str(tmp_path / "none.parquet")) == []


def test_the_best_the_median_and_the_worst_places_of_a_ranking() -> None:
    assert ranking.places(1) == {0: "best"}
    assert ranking.places(2) == {0: "best", 1: "worst"}
    assert ranking.places(5) == {0: "best", 2: "median", 4: "worst"}
    assert list(ranking.places(20)) == [0, 1, 9, 10, 16, 17, 18, 19]
    for count in range(1, 30):  # the contact sheet shows these three
        assert {0, count // 2, count - 1} <= set(ranking.places(count))


@needs_chromium
def test_a_browser_shows_it_whole_and_without_errors(training: Path) -> None:
    page_of(training)
    with visit(training / "report.html", width=390) as visited:
        assert visited.page.locator("#validation tbody tr").count() == 2
        assert visited.overflow() == 0
        assert visited.broken_images() == 0
        assert visited.errors == []
        assert visited.foreign_requests == []
