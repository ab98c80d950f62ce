"""Event files for TensorBoard, read back."""

import io
from pathlib import Path

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from segmodel.runtime.tracking import open_tracker
from segmodel.settings.base import TrackedConfig
from segmodel.storage import store


def events(folder: Path) -> list[Event]:
    """All events: a record is 8 bytes of length, 4 of checksum, the event, 4 of checksum."""
    found = []
    for path in sorted(folder.rglob("*tfevents*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_series_and_figures_are_in_event_files_of_the_output_folder(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (5, 3), (10, 20, 30)).save(picture, "png")
    with open_tracker(TrackedConfig(tracking="tensorboard"), "train", str(tmp_path)) as tracker:
        tracker.append("train/epoch/dice", 0.8125, 1)
        tracker.append("train/epoch/dice", 0.875, 2)
        tracker.upload("figures/history", picture.getvalue(), "png", shows_patients=False)
        tracker.upload("volumes", b"patient_id", "csv", shows_patients=True)
    found = [
        (event.step, value)
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    ]
    series = [
        (step, value.tag, value.simple_value) for step, value in found if not value.image.width
    ]
    assert series == [(1, "train/epoch/dice", 0.8125), (2, "train/epoch/dice", 0.875)]
    (shown,) = [value for _, value in found if value.image.width]
    assert (shown.tag, shown.image.width, shown.image.height) == ("figures/history", 5, 3)


def test_an_s3_output_gets_the_event_files_when_the_job_ends(s3_bucket: str) -> None:
    output = f"{s3_bucket}/tensorboard-run"
    with open_tracker(TrackedConfig(tracking="tensorboard"), "train", output) as tracker:
        tracker.append("train/epoch/dice", 0.8125, 1)
    (run,) = store.list_folders(f"{output}/tensorboard")
    assert run.startswith("train-")
    assert len(store.list_files(f"{output}/tensorboard/{run}")) == 1


def test_a_figure_that_cannot_be_stored_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_tracker(TrackedConfig(tracking="tensorboard"), "train", str(tmp_path)) as tracker:
        tracker.upload("figures/history", b"no picture", "png", shows_patients=False)
        tracker.upload("figures/schedule", b"no picture", "png", shows_patients=False)
    assert [record.getMessage() for record in caplog.records] == [
        "tracking failed and the job goes on without: UnidentifiedImageError"
    ]
