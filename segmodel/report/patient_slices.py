"""The most informative slices of a patient in a run, with their pixels, masks and sides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segmodel.archive.reader import Archive, Shard
from segmodel.archive.slice_file import read_series
from segmodel.archive.slice_format import image, shown_channel
from segmodel.core.errors import ArchiveError
from segmodel.core.grid import Grid
from segmodel.core.mask_png import decode_mask
from segmodel.runs import run_folder
from segmodel.runs.series_masks import final_files
from segmodel.storage import store

SLICES = 3
"""Shown of a patient."""
FRACTION = 16
"""Shown slices are at least two, and 1/16 of the patient's slices, apart: neighbors look alike."""
THREADS = 8
_SLICE_COLUMNS = ["slice_id", "patient_id", "series_id", "slice_index"]
_SIZE_COLUMNS = ["height", "width", "row_spacing_mm", "column_spacing_mm"]
_PREDICTION_COLUMNS = ["mask", "tumor_pixels", "mean_probability", "probability_sum"]
_MASK_COLUMNS = [*_SLICE_COLUMNS, *_SIZE_COLUMNS, *_PREDICTION_COLUMNS]
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}

Row = dict[str, Any]
Source = tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]
"""The shown channel of a slice, and its true mask where there is one; (rows, columns)."""


@dataclass(frozen=True)
class ShownSlice:
    """A slice to draw."""

    series_id: str
    slice_index: int
    last_index: int
    """Of the series' segmented slices."""
    why: str
    """It was chosen."""
    image_hw: npt.NDArray[np.uint8]
    prediction_hw: npt.NDArray[np.bool_]
    """After postprocessing, if there was any."""
    truth_hw: npt.NDArray[np.bool_] | None
    """None where nobody has annotated."""
    row_mm: float | None
    column_mm: float | None
    sides: tuple[str, str, str, str] | None
    """Of the patient, at the picture's top, right, bottom and left: `A`, `L`, `P`, `R`, say."""


def choose(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Choose slices to show, and why: the one with most tumor, then those that add most doubt.

    The doubt of a slice is the number of pixels by which the model expects its mask to be wrong,
    Σ p + Σ m - 2 Σ p m: it lowers the expected Dice. Slices close to a chosen one are skipped.

    Args:
        rows: of masks/, with the counts of the masks that are shown.
    """
    if not rows:
        return []
    largest = max(rows, key=lambda row: (row["tumor_pixels"], row["probability_sum"]))
    why = "most tumor" if largest["tumor_pixels"] else "no tumor found, highest probability"
    chosen = [(largest, why)]
    distance = max(2, len(rows) // FRACTION)
    for row in sorted(rows, key=_doubt, reverse=True):
        if len(chosen) == SLICES or _doubt(row) < 1:
            break
        if not any(_near(row, other, distance) for other, _ in chosen):
            chosen.append((row, "model least sure"))
    return chosen


def _doubt(row: Row) -> float:
    agreed = (row["mean_probability"] or 0.0) * row["tumor_pixels"]
    return float(row["probability_sum"] + row["tumor_pixels"] - 2 * agreed)


def _near(one: Row, other: Row, distance: int) -> bool:
    apart: int = abs(one["slice_index"] - other["slice_index"])
    return bool(one["series_id"] == other["series_id"]) and apart < distance


def sides_of(affine: Sequence[float] | None) -> tuple[str, str, str, str] | None:
    """The patient's sides at top, right, bottom and left of a slice.

    Args:
        affine: 16 numbers, as in the archive's table of series; None where positions are unknown.
    """
    if affine is None:
        return None
    codes = Grid((1, 1, 1), np.array(affine).reshape(4, 4)).axis_codes
    down, right = codes[1], codes[2]
    return _OPPOSITE[down], right, down, _OPPOSITE[right]


class RunSlices:
    """Reads slices of patients from a run folder and its archive.

    Args:
        output: the run folder.
        archive: that was segmented.
        shard_slices: of the run.
    """

    def __init__(self, output: str, archive: Archive, shard_slices: int) -> None:
        self.output, self.archive = output, archive
        self._plan = archive.shards(shard_slices)
        self._masks = set(store.list_files(store.join(output, run_folder.MASKS), ".parquet"))
        self._final = final_files(output)

    def of(self, patient: str) -> list[ShownSlice]:
        """The most informative slices of one patient.

        Raises:
            SegmodelError: a file cannot be read, or the archive holds another slice.
            OSError: the file cannot be fetched.
        """
        rows, shard_of = self._rows(patient)
        last: dict[str, int] = {}
        for row in rows.values():
            last[row["series_id"]] = max(row["slice_index"], last.get(row["series_id"], 0))
        chosen = choose(list(rows.values()))
        shards = list(dict.fromkeys(shard_of[row["slice_id"]] for row, _ in chosen))
        sources: dict[str, Source] = {}
        for shard in shards:
            wanted = [row for row, _ in chosen if shard_of[row["slice_id"]] == shard]
            sources |= self._read_sources(shard, wanted)
        sides = self._sides(shards, patient)
        return [
            ShownSlice(
                series_id=row["series_id"],
                slice_index=row["slice_index"],
                last_index=last[row["series_id"]],
                why=why,
                image_hw=sources[row["slice_id"]][0],
                prediction_hw=decode_mask(row["mask"]),
                truth_hw=sources[row["slice_id"]][1],
                row_mm=row["row_spacing_mm"],
                column_mm=row["column_spacing_mm"],
                sides=sides.get(row["series_id"]),
            )
            for row, why in chosen
        ]

    def _rows(self, patient: str) -> tuple[dict[str, Row], dict[str, Shard]]:
        """By slice id: the patient's rows of masks/, with final masks, and where they are from."""
        rows: dict[str, Row] = {}
        shard_of: dict[str, Shard] = {}
        for shard in self._shards(patient):
            uri = store.join(self.output, run_folder.MASKS, shard.output_file)
            for row in _of_patient(run_folder.read_table(uri, _MASK_COLUMNS), patient):
                rows[row["slice_id"]] = row
                shard_of[row["slice_id"]] = shard
        final = self._final_masks(patient)
        return {name: {**row, **final.get(name, {})} for name, row in rows.items()}, shard_of

    def _shards(self, patient: str) -> list[Shard]:
        return [
            shard
            for shard in self._plan
            if shard.output_file in self._masks
            and (shard.first_patient is None or shard.first_patient <= patient)
            and (shard.last_patient is None or patient <= shard.last_patient)
        ]

    def _final_masks(self, patient: str) -> dict[str, Row]:
        """The columns that differ from masks/, for slices of series that postprocessing changed."""
        columns = ["patient_id", "slice_id", "mask", "tumor_pixels", "mean_probability"]
        paths = {path for key, some in self._final.items() if key[0] == patient for path in some}
        rows = [
            row
            for path in paths
            for row in _of_patient(
                run_folder.read_table(store.join(self.output, path), columns), patient
            )
        ]
        return {row["slice_id"]: row for row in rows}

    def _read_sources(self, shard: Shard, rows: Sequence[Row]) -> dict[str, Source]:
        """Each slice by its id; only row groups with such slices are read."""
        missing, found = {row["slice_id"]: row for row in rows}, {}
        with store.open_parquet(store.join(self.archive.uri, shard.file)) as file:
            for group in range(shard.first_row_group, shard.stop_row_group):
                if not missing:
                    break
                ids = file.read_row_group(group, columns=["slice_id"])["slice_id"].to_pylist()
                here = {name: place for place, name in enumerate(ids) if name in missing}
                if here:
                    table = file.read_row_group(group, columns=["pixels", "mask"])
                    for name, place in here.items():
                        found[name] = self._source(table, place, missing.pop(name))
        for name in missing:
            raise ArchiveError(
                f"{self.archive.uri}: slice {name!r} is in masks/, but not in {shard.file}; "
                "was the archive changed?"
            )
        return found

    def _source(self, table: pa.Table, place: int, row: Row) -> Source:
        channels = self.archive.info.channels
        height, width = row["height"], row["width"]
        pixels_hwc = image(table["pixels"][place], height, width, len(channels))
        mask = table["mask"][place]
        truth_hw = image(mask, height, width, 1)[..., 0] > 0 if mask.is_valid else None
        return pixels_hwc[..., shown_channel(channels)].copy(), truth_hw

    def _sides(
        self, shards: Sequence[Shard], patient: str
    ) -> dict[str, tuple[str, str, str, str] | None]:
        """Of each series of a patient."""
        series = read_series(self.archive.uri, {shard.file for shard in shards})
        rows = _of_patient(series.select(["patient_id", "series_id", "affine"]), patient)
        return {row["series_id"]: sides_of(row["affine"]) for row in rows}


def _of_patient(table: pa.Table, patient: str) -> list[Row]:
    rows: list[Row] = table.filter(pc.equal(table["patient_id"], patient)).to_pylist()
    return rows
