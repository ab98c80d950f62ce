"""Metrics of series: computed by one task, and returned as rows of the tables."""

from dataclasses import dataclass

from segmodel.core.errors import GeometryError
from segmodel.core.geometry import MM3_PER_ML
from segmodel.evaluation import metrics, pairing
from segmodel.evaluation.metrics import Lesion
from segmodel.evaluation.pairing import Pair, Unpaired
from segmodel.runs.series_masks import Task


@dataclass(frozen=True, kw_only=True)
class Case:
    """One series of one segmentation, a row of patients.csv."""

    segmentation: str
    patient_id: str
    series_id: str
    seen_in_training: str
    """`train`, `validation`, `no`, or `unknown` where the checkpoint does not say."""
    slices: int
    """That were compared."""
    slices_without_truth: int
    slices_not_segmented: int
    dice: float
    iou: float
    precision: float | None
    recall: float | None
    unit: str
    """Of the distances and of the tolerance: `mm`, or `voxel` where the spacing is unknown."""
    hd95: float | None
    average_surface_distance: float | None
    nsd: float | None
    true_voxels: int
    predicted_voxels: int
    shared_voxels: int
    voxels: int
    """Of all slices that were compared, tumor or not."""
    true_ml: float | None
    predicted_ml: float | None
    volume_error_ml: float | None
    """Predicted minus true."""
    absolute_volume_error_ml: float | None
    relative_volume_error: float | None
    """Of the true volume; None without tumor. Known without spacing, too."""
    lesions: int
    """Of the truth."""
    lesions_found: int
    lesions_invented: int
    """Pieces of the prediction that touch no tumor."""


@dataclass(frozen=True, kw_only=True)
class LesionRow:
    """One connected piece of truth or prediction, a row of lesions.csv."""

    segmentation: str
    patient_id: str
    series_id: str
    of: str
    """`truth` or `prediction`."""
    voxels: int
    ml: float | None
    overlap_voxels: int
    status: str
    """`found` or `missed` of the truth; `right` or `invented` of the prediction."""
    centre_slice: float
    centre_row: float
    centre_column: float
    """From 0, among the slices that were compared."""


@dataclass(frozen=True)
class Outcome:
    """What one task found."""

    cases: list[Case]
    lesions: list[LesionRow]
    unpaired: list[Unpaired]


def evaluate_task(
    task: Task, archive: str, run: str, name: str, seen: dict[str, str], tolerance: float
) -> Outcome:
    """Compare the annotated series of a task with a segmentation.

    Args:
        task: from `series_masks.plan`.
        archive: folder of the archive.
        run: folder of the segmentation.
        name: of the segmentation, for the rows.
        seen: whether the model has seen a patient: `train`, `validation`, `no` or `unknown`.
        tolerance: of the normalised surface Dice, in mm, or voxels where the spacing is unknown.
    """
    outcome = Outcome([], [], [])
    for pair in pairing.pairs(archive, task, run):
        if isinstance(pair, Unpaired):
            outcome.unpaired.append(pair)
            continue
        pieces = metrics.lesions(pair.truth, pair.predicted)
        seen_in_training = seen.get(pair.patient_id, "no")
        outcome.cases.append(_case(pair, name, seen_in_training, pieces, tolerance))
        outcome.lesions.extend(_lesion_row(pair, name, piece) for piece in pieces)
    return outcome


def _case(pair: Pair, name: str, seen: str, pieces: list[Lesion], tolerance: float) -> Case:
    counted = metrics.overlap(pair.truth, pair.predicted)
    spacing = pair.spacing_mm or (1.0, 1.0, 1.0)
    distances = metrics.surface_distances(pair.truth, pair.predicted, spacing, tolerance)
    ml = _voxel_ml(pair)
    difference = counted.predicted - counted.truth
    return Case(
        segmentation=name,
        patient_id=pair.patient_id,
        series_id=pair.series_id,
        seen_in_training=seen,
        slices=len(pair.truth),
        slices_without_truth=pair.slices_without_truth,
        slices_not_segmented=pair.slices_not_segmented,
        dice=counted.dice,
        iou=counted.iou,
        precision=counted.precision,
        recall=counted.recall,
        unit="voxel" if pair.spacing_mm is None else "mm",
        hd95=distances.hd95,
        average_surface_distance=distances.average,
        nsd=distances.nsd,
        true_voxels=counted.truth,
        predicted_voxels=counted.predicted,
        shared_voxels=counted.both,
        voxels=pair.truth.size,
        true_ml=None if ml is None else counted.truth * ml,
        predicted_ml=None if ml is None else counted.predicted * ml,
        volume_error_ml=None if ml is None else difference * ml,
        absolute_volume_error_ml=None if ml is None else abs(difference) * ml,
        relative_volume_error=difference / counted.truth if counted.truth else None,
        lesions=sum(piece.of_truth for piece in pieces),
        lesions_found=sum(piece.of_truth and piece.found for piece in pieces),
        lesions_invented=sum(not piece.of_truth and not piece.found for piece in pieces),
    )


def _lesion_row(pair: Pair, name: str, piece: Lesion) -> LesionRow:
    words = ("found", "missed") if piece.of_truth else ("right", "invented")
    ml = _voxel_ml(pair)
    return LesionRow(
        segmentation=name,
        patient_id=pair.patient_id,
        series_id=pair.series_id,
        of="truth" if piece.of_truth else "prediction",
        voxels=piece.voxels,
        ml=None if ml is None else piece.voxels * ml,
        overlap_voxels=piece.overlap,
        status=words[0] if piece.found else words[1],
        centre_slice=piece.centre[0],
        centre_row=piece.centre[1],
        centre_column=piece.centre[2],
    )


def _voxel_ml(pair: Pair) -> float | None:
    if pair.spacing_mm is None:
        return None
    depth, height, width = pair.spacing_mm
    volume = depth * height * width / MM3_PER_ML
    if volume <= 0:
        raise GeometryError(f"series {pair.series_id!r}: impossible spacing {pair.spacing_mm}")
    return volume
