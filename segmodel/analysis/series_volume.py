"""The volume of one series, or the reason why it has none; and which series are postprocessed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from segmodel.analysis import series_counts
from segmodel.analysis.review import estimate_dice
from segmodel.analysis.series_counts import SeriesCounts
from segmodel.analysis.studies import SeriesKey
from segmodel.analysis.tumor_shape import Postprocessing, Shape
from segmodel.core.errors import GeometryError
from segmodel.core.geometry import MM3_PER_ML

NO_TUMOR = Shape(0, 0, 0, touches_border=False, jumps=())


@dataclass(frozen=True, kw_only=True)
class CountedSeries:
    """A series whose slices were counted, before its shape is measured."""

    counts: SeriesCounts
    missing: int
    """Slices that there should be, and that could not be segmented."""
    holes: int
    """Those of them that nothing is known of."""
    duplicated: int
    stray: int
    """Slices of the same patient in quarantine that name no series: they may be of this one."""
    voxel_mm3: float | None
    problem: str | None
    """Why it has no volume; None if it has one."""
    estimated_dice: float | None
    """That the model expects of its own mask, before postprocessing; None without slices."""

    @property
    def key(self) -> SeriesKey:
        """Its patient and its name."""
        return self.counts.patient_id, self.counts.series_id

    @property
    def can_be_measured(self) -> bool:
        """Whether there is tumor, in slices of one size."""
        return self.counts.tumor_voxels > 0 and not self.counts.several_sizes


@dataclass(frozen=True)
class Treatment:
    """Whether a series is postprocessed."""

    postprocess: bool = False
    left_alone: str | None = None
    """Why it is not, although it was asked for and it has tumor."""


@dataclass(frozen=True)
class MeasuredSeries:
    """A series with the counts and the shape of its final masks."""

    counted: CountedSeries
    treatment: Treatment
    shape: Shape | None
    """None where slices of several sizes cannot be put together."""

    @property
    def tumor_voxels(self) -> int:
        """Of the final masks. Without postprocessing duplicated slices count each."""
        if self.treatment.postprocess and self.shape is not None:
            return self.shape.tumor_voxels
        return self.counted.counts.tumor_voxels

    @property
    def slices_with_tumor(self) -> int:
        """As `tumor_voxels`."""
        if self.treatment.postprocess and self.shape is not None:
            return self.shape.slices_with_tumor
        return self.counted.counts.slices_with_tumor

    @property
    def volume_mm3(self) -> float | None:
        """None where it would be wrong."""
        voxel_mm3 = self.counted.voxel_mm3
        if self.counted.problem is not None or voxel_mm3 is None:
            return None
        return self.tumor_voxels * voxel_mm3

    @property
    def volume_ml(self) -> float | None:
        """None where it would be wrong."""
        return None if self.volume_mm3 is None else self.volume_mm3 / MM3_PER_ML

    @property
    def volume_note(self) -> str | None:
        """Why there is no volume, or why it was not postprocessed."""
        return self.treatment.left_alone or self.counted.problem


def count(counts: pa.Table, quarantined: pa.Table) -> list[CountedSeries]:
    """The series of a run, sorted by patient and series.

    Slices in quarantine that name no series are a series of their own. No other series of their
    patient has a volume then, because one of the slices may belong to it. Slices that name no
    patient are missing in the series of their name, if there is only one.

    Args:
        counts: from `series_counts.count_series`.
        quarantined: as given to it.
    """
    series = [SeriesCounts.of(row) for row in counts.to_pylist()]
    blank = series_counts.blank_indices(quarantined)
    without_patient = Counter(
        quarantined.filter(pc.is_null(quarantined["patient_id"]))["series_id"].to_pylist()
    )
    owners = Counter(one.series_id for one in series)
    stray = {
        one.patient_id: one.with_index + one.without_index
        for one in series
        if one.series_id is None
    }
    counted = [
        _counted(
            one,
            series_counts.slices_missing(
                one,
                blank.get((one.patient_id, one.series_id), set()),
                without_patient[one.series_id] if owners[one.series_id] == 1 else 0,
            ),
            stray.get(one.patient_id, 0),
        )
        for one in series
    ]
    return sorted(counted, key=lambda one: (one.key[0], one.key[1] or ""))


def decide_treatment(series: CountedSeries, how: Postprocessing | None) -> Treatment:
    """Whether a series is postprocessed: only a whole one is."""
    if how is None:
        return Treatment()
    counts = series.counts
    whole = not (series.missing or series.duplicated or series.stray or counts.several_sizes)
    if whole and (how.min_volume_ml is None or series.voxel_mm3 is not None):
        return Treatment(postprocess=True)
    if not counts.tumor_voxels:
        return Treatment()
    sizes = "slices of several sizes" if counts.several_sizes else None
    reasons = [series.problem, sizes, "therefore not postprocessed"]
    return Treatment(left_alone="; ".join(filter(None, reasons)))


def with_shapes(
    series: Sequence[CountedSeries], treatments: Iterable[Treatment], shapes: pa.Table
) -> list[MeasuredSeries]:
    """Give each series its shape.

    Args:
        series: from `count`.
        treatments: of each.
        shapes: `series_shapes.SHAPES` of those that can be measured.
    """
    found = {
        (row.pop("patient_id"), row.pop("series_id")): Shape(**row | {"jumps": tuple(row["jumps"])})
        for row in shapes.to_pylist()
    }
    return [
        MeasuredSeries(
            one, treatment, found.get(one.key, None if one.counts.tumor_voxels else NO_TUMOR)
        )
        for one, treatment in zip(series, treatments, strict=True)
    ]


def problems(slices: int, missing: int, duplicated: int) -> list[str]:
    """Why there is no volume, as far as it lies in the number of slices."""
    found = [] if slices else ["no slice could be segmented"]
    if missing:
        found.append(_slices(missing, "missing "))
    if duplicated:
        found.append(_slices(duplicated, "duplicated "))
    return found


def _counted(counts: SeriesCounts, missing: tuple[int, int], stray: int) -> CountedSeries:
    named = counts.series_id is not None
    if not named:
        missing = stray, 0
    duplicated = counts.with_index - counts.indices if named else 0
    reasons = problems(counts.slices, missing[0], duplicated)
    voxel_mm3 = None
    if counts.slices and counts.spacing_varies:
        reasons.append("the spacing differs from slice to slice")
    elif counts.slices:
        try:
            voxel_mm3 = counts.spacing.voxel_mm3()
        except GeometryError as error:
            reasons.append(str(error))
    if stray and named:
        reasons.append(f"{_slices(stray)} of this patient in quarantine name no series")
    estimate = estimate_dice(
        counts.probability_sum, counts.probability_in_mask, counts.tumor_voxels
    )
    return CountedSeries(
        counts=counts,
        missing=missing[0],
        holes=missing[1],
        duplicated=duplicated,
        stray=stray if named else 0,
        voxel_mm3=voxel_mm3,
        problem="; ".join(reasons) or None,
        estimated_dice=estimate if counts.slices else None,
    )


def _slices(number: int, which: str = "") -> str:
    return f"{number} {which}slice{'s' if number > 1 else ''}"
