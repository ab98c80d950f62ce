"""Throughput over time, as a run folder keeps it."""

import csv
import json
from pathlib import Path

from segmodel.runs.throughput import SpeedRecord
from tests.support import segmented


def rows(folder: Path) -> list[tuple[int, float]]:
    table = csv.DictReader((folder / "throughput.csv").read_text().splitlines())
    return [(int(row["slices"]), float(row["slices_per_second"])) for row in table]


def test_the_speed_is_written_after_the_first_shard_and_then_once_a_minute(tmp_path: Path) -> None:
    seconds = 0.0
    record = SpeedRecord(str(tmp_path), segmented.new_run(), clock=lambda: seconds)
    written = []
    for seconds, speed in ((10.0, 1.0), (69.0, 2.0), (70.0, 3.0), (100.0, 4.0)):
        record.note(int(seconds), speed)
        written.append(json.loads((tmp_path / "run.json").read_text())["slices_per_second"])
    assert written == [1.0, 1.0, 3.0, 3.0]


def test_throughput_over_time_has_a_row_every_five_seconds_and_the_last(tmp_path: Path) -> None:
    seconds = 0.0
    record = SpeedRecord(str(tmp_path), segmented.new_run(), clock=lambda: seconds)
    for seconds in (1.0, 3.0, 6.0, 8.0):
        record.note(int(10 * seconds), 10.0)
    record.close(90, 11.0)
    assert rows(tmp_path) == [(10, 10.0), (60, 10.0), (90, 11.0)]


def test_a_call_that_goes_on_keeps_the_rows_of_the_earlier_one(tmp_path: Path) -> None:
    SpeedRecord(str(tmp_path), segmented.new_run()).close(5, 1.0)
    SpeedRecord(str(tmp_path), segmented.new_run()).close(7, 2.0)
    assert rows(tmp_path) == [(5, 1.0), (7, 2.0)]
