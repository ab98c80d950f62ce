"""Neptune's real client, offline and against servers that do not answer."""

import base64
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segmodel.runtime.tracking import NeptuneTracker, Tracker, open_tracker


def token(address: str) -> str:
    return base64.b64encode(
        json.dumps({"api_address": address, "api_url": address, "api_key": "s3cr3t"}).encode()
    ).decode()


def stored(folder: Path) -> str:
    return "\n".join(
        path.read_text(errors="replace") for path in sorted(folder.rglob("*")) if path.is_file()
    )


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEPTUNE_API_TOKEN", raising=False)


def test_without_a_token_everything_is_stored_in_the_output_folder(tmp_path: Path) -> None:
    with open_tracker("neptune", "train", str(tmp_path)) as tracker:
        assert isinstance(tracker, NeptuneTracker)
        tracker.record("parameters", {"lr": 0.005, "spacing": None, "gpu": False})
        tracker.append("train/dice", 0.8125, 1)
        tracker.append("train/dice", 0.875, 2)
    text = stored(tmp_path / ".neptune" / "offline")
    assert '"parameters", "lr"' in text
    assert '"train", "dice"' in text
    assert "0.8125" in text
    assert "0.875" in text


def test_tracking_none_stores_nothing_and_does_not_import_the_client(tmp_path: Path) -> None:
    code = (
        "import sys; from segmodel.runtime.tracking import open_tracker\n"
        f"with open_tracker('none', 'train', {str(tmp_path)!r}) as tracker: tracker.append('a', 1.0, 1)\n"
        "assert 'neptune' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list(tmp_path.iterdir()) == []


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
        with open_tracker("neptune", "segment", str(tmp_path)) as tracker:
            assert (
                time.monotonic() - started < 10 + 5
            )  # the first import of the client comes on top
            tracker.append("progress/slices_per_second", 3.5, 1)
    warnings = [
        record.message for record in caplog.records if record.name == "segmodel.runtime.tracking"
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

    tracker: Tracker = NeptuneTracker(Broken(), finish=lambda: None)
    tracker.append("a", 1.0, 1)
    tracker.record("b", {"c": 1})
    tracker.close()
    assert len(caplog.records) == 1  # said once, not at every step
