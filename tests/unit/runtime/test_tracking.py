"""The trackers: Neptune's real client offline, against dead servers and against a recording one."""

import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from segmodel.runtime.neptune_tracker import NeptuneTracker
from segmodel.runtime.tracker import Tracker
from segmodel.runtime.tracking import divide_settings, open_tracker
from segmodel.settings.base import TrackedConfig
from segmodel.settings.segment import SegmentConfig
from segmodel.settings.training import CompareConfig, TrainConfig
from tests.support.neptune_server import neptune_server, token

PATIENT = "TCGA_CS_4941"


def stored(folder: Path) -> str:
    return "\n".join(
        path.read_text(errors="replace") for path in sorted(folder.rglob("*")) if path.is_file()
    )


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEPTUNE_API_TOKEN", raising=False)


def test_without_a_token_everything_is_stored_in_the_output_folder(tmp_path: Path) -> None:
    with open_tracker(TrackedConfig(), "train", str(tmp_path)) as tracker:
        tracker.record("parameters", {"lr": 0.005, "spacing": None, "gpu": False})
        tracker.record_private("parameters", {"archive": f"/scans/{PATIENT}"})
        tracker.upload("volumes", PATIENT[::-1].encode(), "csv", shows_patients=True)
        tracker.append("train/dice", 0.8125, 1)
        tracker.append("train/dice", 0.875, 2)
    text = stored(tmp_path / ".neptune" / "offline")
    assert f"/scans/{PATIENT}" in text
    assert PATIENT[::-1] in text
    assert '"parameters", "lr"' in text
    assert '"train", "dice"' in text
    assert "0.8125" in text
    assert "0.875" in text


def test_tracking_none_stores_no_more_than_the_values_and_imports_no_client(tmp_path: Path) -> None:
    code = (
        "import sys; from segmodel.runtime.tracking import open_tracker\n"
        "from segmodel.settings.base import TrackedConfig\n"
        f"config, output = TrackedConfig(tracking='none'), {str(tmp_path)!r}\n"
        "with open_tracker(config, 'train', output) as tracker: tracker.append('a', 1.0, 1)\n"
        "assert 'neptune' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tracked.json"]


def test_a_dead_server_costs_seconds_one_warning_and_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as listener:  # accepts connections and never says a word
        secret = token(f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("NEPTUNE_API_TOKEN", secret)
        monkeypatch.setenv("NEPTUNE_PROJECT", "hospital/glioma")
        started = time.monotonic()
        with open_tracker(TrackedConfig(), "segment", str(tmp_path)) as tracker:
            assert (
                time.monotonic() - started < 10 + 5
            )  # the first import of the client comes on top
            tracker.append("progress/slices_per_second", 3.5, 1)
    warnings = [
        record.message
        for record in caplog.records
        if record.name == "segmodel.runtime.neptune_tracker"
    ]
    assert len(warnings) == 1
    assert "tracking offline" in warnings[0]
    text = stored(tmp_path)
    assert "3.5" in text
    assert secret not in text + warnings[0]
    assert "s3cr3t" not in text + warnings[0]


def test_a_client_that_fails_in_the_middle_does_not_stop_the_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def __getitem__(self, name: str) -> None:
            raise ConnectionError("gone")

        def stop(self, seconds: float) -> None:
            raise ConnectionError("gone")

    tracker: Tracker = NeptuneTracker(Broken(), finish=lambda: None, private=True)
    tracker.append("a", 1.0, 1)
    tracker.record("b", {"c": 1})
    tracker.close()
    assert len(caplog.records) == 1  # said once, not at every step


def track(output: Path, *, track_patients: bool = False) -> None:
    """What a job tracks, in a folder that is named after a patient."""
    config = TrainConfig(
        archive=f"/scans/{PATIENT}", output=str(output), track_patients=track_patients
    )
    with open_tracker(config, "train", str(output), tags=["dynamic"], run_id="0" * 32) as tracker:
        print("training", PATIENT)
        print("warning of", PATIENT, file=sys.stderr)
        tracker.record("result", {"best_dice": 0.875})
        tracker.append("train/epoch/dice", 0.8125, 1)
        tracker.record_private("models/1", {"model": PATIENT})
        tracker.upload("figures/history", b"a curve", "png", shows_patients=False)
        tracker.upload("figures/patients", f"{PATIENT}".encode(), "png", shows_patients=True)
        time.sleep(0.2)


def test_a_server_gets_numbers_settings_and_curves_and_nothing_of_a_patient(
    tmp_path: Path,
) -> None:
    with neptune_server() as sent:
        track(tmp_path / PATIENT)
    assert PATIENT not in sent.text
    assert sent.files == {"figures/history": b"a curve"}
    assert "0.8125" in sent.text
    assert {"parameters/image_size", "parameters/arch", "result/best_dice"} <= sent.names
    assert not [name for name in sent.names if "hostname" in name or "monitoring" in name]
    assert "'git_info': None" in sent.text


def test_with_track_patients_a_server_gets_everything(tmp_path: Path) -> None:
    with neptune_server() as sent:
        track(tmp_path / PATIENT, track_patients=True)
    assert sent.files["figures/patients"] == PATIENT.encode()
    assert {"parameters/archive", "models/1/model"} <= sent.names
    assert f"train {PATIENT}" in sent.text  # the run's name


def test_what_waits_for_a_dead_server_holds_nothing_of_a_patient_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NEPTUNE_API_TOKEN", token("http://127.0.0.1:9"))
    monkeypatch.setenv("NEPTUNE_PROJECT", "hospital/glioma")
    monkeypatch.setattr("segmodel.runtime.neptune_tracker.CONNECT_SECONDS", 0.5)
    track(tmp_path / PATIENT)
    assert "tracking offline" in caplog.text
    text = stored(tmp_path / PATIENT / ".neptune")
    assert "0.8125" in text
    assert PATIENT not in text


def test_all_values_are_in_the_output_folder_without_a_tracker(tmp_path: Path) -> None:
    config = TrackedConfig(tracking="none")
    with open_tracker(config, "train", str(tmp_path)) as tracker:
        tracker.record("result", {"best_dice": 0.875})
        tracker.record_private("models/1", {"model": PATIENT})
    tracked = json.loads((tmp_path / "tracked.json").read_text())
    assert tracked["result"] == {"best_dice": 0.875}
    assert tracked["models/1"] == {"model": PATIENT}
    assert tracked["parameters"] == {"track_patients": False, "tracking": "none"}
    assert len(tracked["source"]["sha256"]) == 64


def test_paths_patterns_and_lists_of_ids_are_private_settings() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Config(TrackedConfig):
        patients: list[str]
        labels: tuple[int, ...]
        pattern: str | None
        limit: int | str
        plane: Literal["axial", "any"] | None

    config = Config(
        patients=["007"], labels=(1, 4), pattern="axial", limit=7, plane="axial", tracking="none"
    )
    public, private = divide_settings(config)
    assert private == {"patients": ["007"], "pattern": "axial", "limit": 7}
    assert public == {
        "labels": (1, 4),
        "plane": "axial",
        "tracking": "none",
        "track_patients": False,
    }


def test_the_jobs_paths_are_private_and_the_encoders_origin_is_public() -> None:
    train = {"archive": "/a", "output": "/o"}
    public, private = divide_settings(TrainConfig(**train, workers="1:4"))
    assert private.keys() == {"archive", "output"}
    assert (public["workers"], public["encoder_weights"]) == ("1:4", "imagenet")
    _, private = divide_settings(TrainConfig(**train, encoder_weights=f"/{PATIENT}.pth"))
    assert private["encoder_weights"] == f"/{PATIENT}.pth"
    _, private = divide_settings(CompareConfig(**train, checkpoints=["/b", "/c"]))
    assert private.keys() == {"archive", "output", "checkpoints"}
    _, private = divide_settings(SegmentConfig(**train, checkpoint="/c"))
    assert private.keys() == {"archive", "output", "checkpoint"}
