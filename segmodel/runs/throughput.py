"""The speed of a segmentation: in run.json for the next call's estimate, and over time."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from segmodel.runs import run_file
from segmodel.runs.run_file import Run
from segmodel.runs.run_folder import THROUGHPUT
from segmodel.storage import csv_files, store

ROW_S = 5.0
"""Least time between two rows."""
WRITE_S = 60.0
"""Least time between two writings of the files."""


class SpeedRecord:
    """Notes how many slices a call has segmented. Rows of earlier calls stay in the table."""

    def __init__(self, output: str, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self.output, self.run, self.clock = output, run, clock
        self._uri = store.join(output, THROUGHPUT)
        self._rows: list[dict[str, Any]] = _read(self._uri)
        self._noted = self._written = float("-inf")

    def note(self, slices: int, slices_per_second: float) -> None:
        """To be called after every shard.

        Args:
            slices: segmented by this call so far.
            slices_per_second: since its start.
        """
        if self.clock() - self._noted >= ROW_S:
            self._add(slices, slices_per_second)
        if self.clock() - self._written >= WRITE_S:
            self._written = self.clock()
            run_file.write(self.output, replace(self.run, slices_per_second=slices_per_second))
            csv_files.publish_csv(self._uri, self._rows)

    def close(self, slices: int, slices_per_second: float) -> None:
        """Write the final speed of this call."""
        self._add(slices, slices_per_second)
        csv_files.publish_csv(self._uri, self._rows)

    def _add(self, slices: int, slices_per_second: float) -> None:
        self._noted = self.clock()
        row = {"time": run_file.now(), "slices": slices, "slices_per_second": slices_per_second}
        self._rows.append(row)


def _read(uri: str) -> list[dict[str, Any]]:
    return [dict(row) for row in csv_files.read_csv(uri)] if store.exists(uri) else []
