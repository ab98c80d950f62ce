"""The most informative slices of a patient in an evaluation: truth and each run's prediction."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from segmodel.archive.reader import Archive
from segmodel.archive.slice_file import read_series
from segmodel.archive.slice_format import image, shown_channel
from segmodel.core import schema
from segmodel.core.errors import ArchiveError
from segmodel.core.mask_png import decode_mask
from segmodel.report.patient_slices import ShownSlice, sides_of
from segmodel.runs import series_masks
from segmodel.runs.series_masks import PredictedMasks, RowReader
from segmodel.storage import store

_COLUMNS = [*schema.INDEX_COLUMNS, "mask", "pixels"]

Masks = npt.NDArray[np.bool_]


def choose(truth: Masks, predicted: Masks, limit: int) -> list[tuple[int, str]]:
    """The slices to show, and why: most tumor, most missed, most invented; none next to another.

    Args:
        truth: bool, (slices, rows, columns).
        predicted: the same shape.
        limit: slices at most.
    """
    counts = {
        "most tumor": truth.sum(axis=(1, 2)),
        "most missed": (truth & ~predicted).sum(axis=(1, 2)),
        "most invented": (predicted & ~truth).sum(axis=(1, 2)),
    }
    chosen: list[tuple[int, str]] = []
    for why, pixels_d in counts.items():
        for index in np.argsort(-pixels_d, kind="stable").tolist():
            if len(chosen) == limit or not pixels_d[index]:
                break
            if all(abs(index - other) > 1 for other, _ in chosen):
                chosen.append((index, why))
                break
    return chosen or [(len(truth) // 2, "no tumor in either mask")]


class ComparedSlices:
    """Reads slices of patients from an archive and from the runs that segmented it.

    Args:
        archive: with the truth.
        runs: folder of each segmentation, by its name; the first decides which slices are shown.
    """

    def __init__(self, archive: Archive, runs: Mapping[str, str]) -> None:
        self._archive, self._runs = archive, runs
        self._places = {
            (series.patient_id, series.series_id): (task.file, series)
            for task in series_masks.plan(archive, archive.index())
            for series in task.series
        }

    def of(self, patient: str, series_id: str, limit: int) -> list[dict[str, ShownSlice]]:
        """At most `limit` slices of a series, each as every segmentation has it, by its name.

        Raises:
            SegmodelError: a file cannot be read, or the archive has no such series.
            OSError: the file cannot be fetched.
        """
        if (patient, series_id) not in self._places:
            raise ArchiveError(f"{self._archive.uri} has no series {series_id!r} of {patient!r}")
        file, series = self._places[patient, series_id]
        with store.open_parquet(store.join(self._archive.uri, file)) as opened:
            reader = RowReader(opened, _COLUMNS)
            table = reader.read(series.first, series.stop)
            table = table.filter(pc.is_valid(table["mask"])).sort_by("slice_index")
            found = {
                name: PredictedMasks(run, file).of(series, reader)
                for name, run in self._runs.items()
            }
        rows = table.drop(["mask", "pixels"]).to_pylist()
        shape = (rows[0]["height"], rows[0]["width"])
        truth = np.stack([_mask(value.as_buffer(), shape) for value in table["mask"]])
        predicted = {name: _predicted(masks, rows, shape) for name, masks in found.items()}
        sides = self._sides(file, patient, series_id)
        channels = self._archive.info.channels
        shown = []
        for place, why in choose(truth, next(iter(predicted.values())), limit):
            pixels = image(table["pixels"][place], *shape, len(channels))
            shown.append(
                {
                    name: ShownSlice(
                        series_id=series_id,
                        slice_index=rows[place]["slice_index"],
                        last_index=rows[-1]["slice_index"],
                        why=why,
                        image_hw=pixels[..., shown_channel(channels)],
                        prediction_hw=masks[place],
                        truth_hw=truth[place],
                        row_mm=rows[place]["row_spacing_mm"],
                        column_mm=rows[place]["column_spacing_mm"],
                        sides=sides,
                    )
                    for name, masks in predicted.items()
                }
            )
        return shown

    def _sides(self, file: str, patient: str, series_id: str) -> tuple[str, str, str, str] | None:
        for one in read_series(self._archive.uri, [file]).to_pylist():
            if (one["patient_id"], one["series_id"]) == (patient, series_id):
                return sides_of(one["affine"])
        return None


def _predicted(
    masks: Mapping[str, bytes], rows: list[dict[str, Any]], shape: tuple[int, int]
) -> Masks:
    """A run's masks of some slices; nothing where a slice was not segmented."""
    pngs = [masks.get(row["slice_id"]) for row in rows]
    decoded = [np.zeros(shape, bool) if png is None else decode_mask(png) for png in pngs]
    return np.stack(decoded)


def _mask(content: Any, shape: tuple[int, int]) -> Masks:
    return np.frombuffer(content, np.uint8).reshape(shape) > 0
