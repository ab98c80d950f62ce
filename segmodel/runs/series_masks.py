"""The slices of a series and the final masks of a run for them, in portions for Ray tasks."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmodel.archive.reader import Archive
from segmodel.core import schema
from segmodel.runs import run_folder
from segmodel.storage import store

TASK_SLICES = 256
"""Least slices of a task; the last task of an archive file may have fewer."""


@dataclass(frozen=True)
class SeriesRows:
    """Where the slices of one series are."""

    patient_id: str
    series_id: str
    first: int
    """Row of its first slice in the archive file."""
    stop: int


@dataclass(frozen=True)
class Task:
    """Series of one archive file that are worked on together."""

    file: str
    series: tuple[SeriesRows, ...]


def plan(archive: Archive, index: pa.Table) -> list[Task]:
    """Tasks over all series of an archive, annotated or not; the same every time.

    Args:
        archive: that was segmented.
        index: `archive.index()`.
    """
    index = index.select(["patient_id", "series_id"])
    tasks: list[Task] = []
    start = 0
    for file, slices in archive.file_slices().items():
        tasks += _tasks(file, index.slice(start, slices))
        start += slices
    return tasks


def _tasks(file: str, keys: pa.Table) -> Iterator[Task]:
    bounds = [0, *_changes(keys).tolist(), keys.num_rows]
    pending: list[SeriesRows] = []
    for first, stop in itertools.pairwise(bounds):
        if first == stop:
            continue
        patient, series = (keys[name][first].as_py() for name in ("patient_id", "series_id"))
        pending.append(SeriesRows(patient, series, first, stop))
        if stop - pending[0].first >= TASK_SLICES:
            yield Task(file, tuple(pending))
            pending = []
    if pending:
        yield Task(file, tuple(pending))


def _changes(keys: pa.Table) -> npt.NDArray[np.int64]:
    """Rows at which a new series begins, without the first row."""
    changed = np.zeros(max(keys.num_rows - 1, 0), bool)
    for name in keys.column_names:
        codes = keys[name].combine_chunks().dictionary_encode().indices.to_numpy()
        changed |= codes[1:] != codes[:-1]
    return np.flatnonzero(changed) + 1


class RowReader:
    """Rows of an archive file; the row groups of the last answer are kept for the next.

    Args:
        file: of the archive.
        columns: that are read.
    """

    def __init__(self, file: pq.ParquetFile, columns: Sequence[str]) -> None:
        self._file, self._columns = file, list(columns)
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._kept: dict[int, pa.Table] = {}

    def groups(self, first: int, stop: int) -> range:
        """Numbers of the row groups that hold some rows."""
        low = int(np.searchsorted(self.starts, first, side="right")) - 1
        return range(low, int(np.searchsorted(self.starts, stop, side="left")))

    def read(self, first: int, stop: int) -> pa.Table:
        """The columns of the rows from `first` to `stop`."""
        wanted = self.groups(first, stop)
        self._kept = {
            number: self._kept[number]
            if number in self._kept
            else self._file.read_row_group(number, self._columns)
            for number in wanted
        }
        table = pa.concat_tables([self._kept[number] for number in wanted])
        return table.slice(first - int(self.starts[wanted.start]), stop - first)


class PredictedMasks:
    """Masks of a run for the slices of one archive file, final ones where there are."""

    def __init__(self, run: str, file: str) -> None:
        self._run = run
        stem = file.removesuffix(".parquet") + "-rows-"
        names = store.list_files(store.join(run, run_folder.MASKS), ".parquet")
        self._files = [(name, _row_groups(name)) for name in names if name.startswith(stem)]
        self._final = final_files(run)
        self._kept: dict[str, dict[str, bytes]] = {}
        self._quarantined: set[str] | None = None

    def of(self, series: SeriesRows, rows: RowReader) -> dict[str, bytes]:
        """PNG of each slice of a series that was segmented, by its slice id."""
        wanted = [f"{run_folder.MASKS}/{name}" for name in self._shards(series, rows)]
        wanted += self._final.get((series.patient_id, series.series_id), [])
        self._kept = {name: self._kept.get(name) or self._read(name) for name in wanted}
        return {key: png for name in wanted for key, png in self._kept[name].items()}

    def blank(self, series: SeriesRows, rows: RowReader) -> frozenset[str]:
        """Ids of the blank slices of a series, whose pixels are all equal."""
        quarantine = store.join(self._run, run_folder.QUARANTINE)
        if self._quarantined is None:
            self._quarantined = set(store.list_files(quarantine, ".parquet"))
        found: set[str] = set()
        for name in self._shards(series, rows):
            if name in self._quarantined:
                table = run_folder.read_table(store.join(quarantine, name), ["slice_id", "stage"])
                blank = table.filter(pc.equal(table["stage"], schema.BLANK))
                found.update(blank["slice_id"].to_pylist())
        return frozenset(found)

    def _shards(self, series: SeriesRows, rows: RowReader) -> list[str]:
        """Names of the files of the shards that hold slices of a series."""
        groups = rows.groups(series.first, series.stop)
        return [
            name
            for name, held in self._files
            if held.start < groups.stop and groups.start < held.stop
        ]

    def _read(self, name: str) -> dict[str, bytes]:
        table = run_folder.read_table(store.join(self._run, name), ["slice_id", "mask"])
        return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _row_groups(name: str) -> range:
    """The archive's row groups that a file of masks/ covers, from the end of its name."""
    first, stop = name.removesuffix(".parquet").rsplit("-", 2)[1:]
    return range(int(first), int(stop))


def final_files(run: str) -> dict[tuple[str, str], list[str]]:
    """Files of postprocessed/ by patient and series: their masks replace those of masks/."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in store.list_files(store.join(run, "postprocessed"), ".parquet"):
        path = f"postprocessed/{name}"
        keys = run_folder.read_table(store.join(run, path), ["patient_id", "series_id"])
        for row in keys.group_by(["patient_id", "series_id"]).aggregate([]).to_pylist():
            found.setdefault((row["patient_id"], row["series_id"]), []).append(path)
    return found
