"""Truth and prediction side by side: which series can be compared, and the masks of each."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmodel.analysis.tumor_shape import Mask
from segmodel.archive.reader import Archive
from segmodel.core import schema
from segmodel.core.errors import FingerprintError
from segmodel.core.geometry import Spacing
from segmodel.core.mask_png import decode_mask
from segmodel.runs import run_folder
from segmodel.segmentation import summary
from segmodel.storage import store

TASK_SLICES = 256
"""Least slices of a task, but for the last of an archive file."""

_COLUMNS = [*schema.INDEX_COLUMNS, "mask"]


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
    """Series of one archive file that are compared together."""

    file: str
    series: tuple[SeriesRows, ...]


@dataclass(frozen=True)
class Pair:
    """One series: its annotated slices, in order, as truth and as predicted."""

    patient_id: str
    series_id: str
    truth: Mask
    """(slices, rows, columns)."""
    predicted: Mask
    """The same shape; nothing where a slice was not segmented."""
    spacing_mm: tuple[float, float, float] | None
    """(slice, row, column); None where one is unknown."""
    slices_without_truth: int
    """Slices of the series that nobody annotated: they are not compared."""
    slices_not_segmented: int
    """Annotated slices for which the run has no mask: they count as without tumor."""


@dataclass(frozen=True)
class Unpaired:
    """A series with truth that cannot be compared, and why."""

    patient_id: str
    series_id: str
    reason: str


def plan(archive: Archive) -> list[Task]:
    """Tasks over all series of the archive, annotated or not; the same every time."""
    index = archive.index().select(["patient_id", "series_id"])
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
    """Rows at which another series than before begins, but for the first row."""
    changed = np.zeros(max(keys.num_rows - 1, 0), bool)
    for name in keys.column_names:
        codes = keys[name].combine_chunks().dictionary_encode().indices.to_numpy()
        changed |= codes[1:] != codes[:-1]
    return np.flatnonzero(changed) + 1


def pairs(archive_uri: str, task: Task, run: str) -> Iterator[Pair | Unpaired]:
    """Each annotated series of a task, in turn.

    Args:
        archive_uri: folder of the archive.
        task: from `plan`.
        run: folder of a segmentation of that archive.

    Raises:
        SegmentationError: a file of the run cannot be read.
    """
    masks = _PredictedMasks(run, task.file)
    with store.open_parquet(store.join(archive_uri, task.file)) as file:
        rows_of = _RowReader(file)
        for series in task.series:
            rows = rows_of.read(series.first, series.stop)
            annotated = rows.filter(pc.is_valid(rows["mask"]))
            if annotated.num_rows:
                yield _pair(series, rows, annotated, masks.of(series, rows_of))


def _pair(
    series: SeriesRows, rows: pa.Table, annotated: pa.Table, predicted: dict[str, bytes]
) -> Pair | Unpaired:
    annotated = annotated.sort_by("slice_index")
    shapes = set(zip(*(annotated[name].to_pylist() for name in ("height", "width")), strict=True))
    if len(shapes) > 1:
        reason = f"slices of {len(shapes)} sizes: no volume"
        return Unpaired(series.patient_id, series.series_id, reason)
    if len(annotated["slice_index"].unique()) < annotated.num_rows:
        return Unpaired(series.patient_id, series.series_id, "slices with the same number")
    found = [predicted.get(name) for name in annotated["slice_id"].to_pylist()]
    if not any(found):
        return Unpaired(series.patient_id, series.series_id, "not segmented")
    (shape,) = shapes
    decoded = [np.zeros(shape, bool) if png is None else decode_mask(png) for png in found]
    wrong = next((mask.shape for mask in decoded if mask.shape != shape), None)
    if wrong is not None:
        reason = f"its masks are {wrong[0]}x{wrong[1]} pixels, the slices {shape[0]}x{shape[1]}"
        return Unpaired(series.patient_id, series.series_id, reason)
    truth = [
        np.frombuffer(mask.as_buffer(), np.uint8).reshape(shape) > 0 for mask in annotated["mask"]
    ]
    return Pair(
        series.patient_id,
        series.series_id,
        np.stack(truth),
        np.stack(decoded),
        _spacing(annotated),
        rows.num_rows - annotated.num_rows,
        sum(png is None for png in found),
    )


def _spacing(rows: pa.Table) -> tuple[float, float, float] | None:
    """The only spacing of a series' slices; None where it is unknown, differs, or slices are missing."""
    values = []
    for name in ("slice_spacing_mm", "row_spacing_mm", "column_spacing_mm"):
        found = rows[name].unique().to_pylist()
        if len(found) != 1 or found[0] is None:
            return None
        values.append(float(found[0]))
    index = rows["slice_index"].to_numpy()
    if int(index[-1] - index[0]) + 1 != len(index):
        return None
    spacing = Spacing(*values)
    spacing.voxel_mm3()  # or an error, for lengths that are none
    return values[0], values[1], values[2]


class _RowReader:
    """Rows of an archive file; the row groups of the last answer are kept for the next."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._kept: dict[int, pa.Table] = {}

    def groups(self, first: int, stop: int) -> range:
        """Numbers of the row groups that hold some rows."""
        low = int(np.searchsorted(self.starts, first, side="right")) - 1
        return range(low, int(np.searchsorted(self.starts, stop, side="left")))

    def read(self, first: int, stop: int) -> pa.Table:
        """Light columns and masks of the rows from `first` to `stop`."""
        wanted = self.groups(first, stop)
        self._kept = {
            number: self._kept[number]
            if number in self._kept
            else self._file.read_row_group(number, _COLUMNS)
            for number in wanted
        }
        table = pa.concat_tables([self._kept[number] for number in wanted])
        return table.slice(first - int(self.starts[wanted.start]), stop - first)


class _PredictedMasks:
    """Masks of a run for the slices of one archive file, final ones where there are."""

    def __init__(self, run: str, file: str) -> None:
        self._run = run
        stem = file.removesuffix(".parquet") + "-rows-"
        names = store.list_files(store.join(run, run_folder.MASKS), ".parquet")
        self._files = [(name, _row_groups(name)) for name in names if name.startswith(stem)]
        self._final = _final_files(run)
        self._kept: dict[str, dict[str, bytes]] = {}

    def of(self, series: SeriesRows, rows: _RowReader) -> dict[str, bytes]:
        """PNG of each slice of a series that was segmented, by its slice id."""
        groups = rows.groups(series.first, series.stop)
        wanted = [
            f"{run_folder.MASKS}/{name}"
            for name, held in self._files
            if held.start < groups.stop and groups.start < held.stop
        ]
        wanted += self._final.get((series.patient_id, series.series_id), [])
        self._kept = {name: self._kept.get(name) or self._read(name) for name in wanted}
        return {key: png for name in wanted for key, png in self._kept[name].items()}

    def _read(self, name: str) -> dict[str, bytes]:
        table = run_folder.read_table(store.join(self._run, name), ["slice_id", "mask"])
        return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _row_groups(name: str) -> range:
    """Of the archive file, that a file of masks/ is for: its name ends with the first and the stop."""
    first, stop = name.removesuffix(".parquet").rsplit("-", 2)[1:]
    return range(int(first), int(stop))


def _final_files(run: str) -> dict[tuple[str, str], list[str]]:
    """Files of postprocessed/ by patient and series: their masks replace those of masks/."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in store.list_files(store.join(run, "postprocessed"), ".parquet"):
        path = f"postprocessed/{name}"
        keys = run_folder.read_table(store.join(run, path), ["patient_id", "series_id"])
        for row in keys.group_by(["patient_id", "series_id"]).aggregate([]).to_pylist():
            found.setdefault((row["patient_id"], row["series_id"]), []).append(path)
    return found


def check_run(run: str, archive: Archive) -> dict[str, str]:
    """Look at a segmentation before it is judged.

    Returns:
        Of each patient whether the model has seen it: `train`, `validation` or `no`.

    Raises:
        FingerprintError: there is no finished segmentation of that archive in the folder.
    """
    values = run_folder.read_run(run)
    found = values["fingerprint"].get("archive_id")
    if found != archive.info.archive_id:
        raise FingerprintError(
            f"{run} is a segmentation of another archive (id {found}) than {archive.uri} "
            f"(id {archive.info.archive_id}); give the archive that it was made of"
        )
    if values["finished"] is None:
        raise FingerprintError(f"{run} is not finished; give its jobs.segment command again first")
    if values.get(summary.KEY) == summary.UNFINISHED:
        raise FingerprintError(
            f"{run}: jobs.summarize broke off there, or is at work; give its command again first"
        )
    volumes = run_folder.read_table(
        store.join(run, "volumes.parquet"), ["patient_id", "seen_in_training"]
    )
    return dict(zip(*(column.to_pylist() for column in volumes.columns), strict=True))
