"""Some series of one archive file, which one Ray task exports.

The task publishes the files of its series, then a report of them. A portion whose report and files
are there is done.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from segmodel.archive.slice_file import read_series
from segmodel.core import schema
from segmodel.core.errors import GeometryError
from segmodel.core.geometry import Spacing
from segmodel.export import dicom_seg, nifti, series_mask
from segmodel.export.preflight import spacing_of
from segmodel.export.records import Exported, Reject, Report, SeriesFiles, SeriesInput, Target
from segmodel.export.series_mask import SeriesMask
from segmodel.runs.series_masks import PredictedMasks, RowReader, Task
from segmodel.sources.base import RejectError
from segmodel.storage import store

REPORTS = "unfinished"
"""Folder of the reports; it goes when the export ends."""

_FORMATS: dict[str, Callable[[SeriesInput, Target], SeriesFiles]] = {
    "nifti": nifti.encode,
    "dicom-seg": dicom_seg.encode,
}


@dataclass(frozen=True)
class Portion:
    """What one task exports."""

    task: Task
    stems: tuple[str, ...]
    """The beginning of the file names of each series."""
    files: tuple[tuple[str, ...], ...] = ()
    """URIs of the files of each series' patient, where images have to be found among them."""

    @property
    def report(self) -> str:
        """Name of its report."""
        return f"{self.task.file.removesuffix('.parquet')}-{self.task.series[0].first:08d}.json"


def export_portion(portion: Portion, target: Target) -> Report:
    """Export the series of a portion; runs in a Ray task.

    Raises:
        OSError: a disk or the store gives no answer, or no space is left.
        LeaseLostError: another job has the folder.
        SegmentationError: a file of the run cannot be read.
    """
    task = portion.task
    known = {
        (row["patient_id"], row["series_id"]): row
        for row in read_series(target.archive, [task.file]).to_pylist()
    }
    masks = PredictedMasks(target.run, task.file)
    exported, rejects = [], []
    with store.open_parquet(store.join(target.archive, task.file)) as file:
        reader = RowReader(file, _columns(target))
        files = portion.files or ((),) * len(task.series)
        for series, stem, own in zip(task.series, portion.stems, files, strict=True):
            key = (series.patient_id, series.series_id)
            try:
                rows = reader.read(series.first, series.stop).sort_by("slice_index")
                predicted, blank = masks.of(series, reader), masks.blank(series, reader)
                found = _mask(rows, known.get(key), predicted, blank, target)
                made = SeriesInput(key, stem, found, rows, known.get(key), own)
                exported.append(_publish(made, target))
            except (RejectError, GeometryError) as error:
                rejects.append(Reject(*key, str(error)))
    report = Report(tuple(exported), tuple(rejects))
    target.lease.check()
    store.publish(store.join(target.output, REPORTS, portion.report), report.to_json())
    return report


def _columns(target: Target) -> list[str]:
    more = ["source_uri", "sop_instance_uid"] if target.format == "dicom-seg" else []
    return [*schema.INDEX_COLUMNS, *more, *(["pixels"] if target.with_images else [])]


def _mask(
    rows: pa.Table,
    known: Mapping[str, Any] | None,
    predicted: Mapping[str, bytes],
    blank: frozenset[str],
    target: Target,
) -> SeriesMask:
    series_mask.check_slices(rows)
    if known is not None and known["affine"] is not None:
        series_grid = series_mask.grid_of_series(known)
    else:
        spacing = spacing_of(rows.slice(0, 1)) or target.spacing or Spacing(None, None, None)
        series_grid = series_mask.grid_without_position(rows, spacing)
    return series_mask.build(rows, series_grid, predicted, blank)


def _publish(made: SeriesInput, target: Target) -> Exported:
    """Write the files of a series; each is there whole or not at all."""
    files = _FORMATS[target.format](made, target)
    paths = {name: f"{target.format}/{name}" for name in files.contents}
    for name, content in files.contents.items():
        target.lease.check()
        store.publish(store.join(target.output, paths[name]), content)
    found, (patient, series) = made.found, made.key
    return Exported(
        patient_id=patient,
        series_id=series,
        file=paths[files.mask],
        slices=len(found.mask_dhw),
        slices_unknown=len(found.unknown),
        tumor_voxels=found.tumor_voxels,
        tumor_volume_ml=found.tumor_volume_ml,
        note="; ".join(filter(None, [found.note, files.note])),
        images=tuple(path for name, path in paths.items() if name != files.mask),
    )
