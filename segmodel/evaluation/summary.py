"""Summarises metrics over groups of patients (unseen, validation, train) for summary.json."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from segmodel.evaluation.cases import Case
from segmodel.evaluation.metrics import Overlap
from segmodel.evaluation.statistics import (
    Agreement,
    Distribution,
    PairedDifference,
    agreement,
    distribution,
    paired_difference,
)

METRICS = (
    "dice",
    "iou",
    "precision",
    "recall",
    "hd95",
    "average_surface_distance",
    "nsd",
    "volume_error_ml",
    "absolute_volume_error_ml",
    "relative_volume_error",
)
"""Of a case, that are described over patients."""

DISTANCES = ("hd95", "average_surface_distance", "nsd")
"""Metrics in mm or in voxels: values in different units have no mean."""

GROUPS = {
    "unseen": ("no",),
    "perhaps seen (the checkpoint does not say)": ("unknown",),
    "chose the epoch (validation)": ("validation",),
    "learned from (train)": ("train",),
}
"""Patients by what the model knew of them; never mixed."""


@dataclass(frozen=True)
class Group:
    """Patients of one segmentation that have the same value of `seen_in_training`."""

    name: str
    seen_in_training: tuple[str, ...]
    """Values of that column of patients.csv that make a patient a member."""
    patients: int
    with_tumor: int
    pooled_dice: float
    """Of all voxels of these patients together."""
    all_patients: dict[str, Distribution]
    """Each metric over all of them; of a patient with several series, their mean."""
    tumor_patients: dict[str, Distribution]
    """The same over patients with tumor in the truth."""
    distance_unit: str
    """`mm`, `voxel`, or `mixed`, in which case distances are not averaged."""
    no_distance: int
    """Cases without HD95 because one of the masks is empty."""
    lesions: int
    lesions_found: int
    lesions_invented: int
    volumes: Agreement
    """True and predicted volume; of a patient with several series, their mean."""
    volume_unit: str
    """`ml`; `voxel` where no patient's spacing is known."""


def groups_of(cases: Sequence[Case]) -> list[Group]:
    """Describe each group of patients that has any."""
    found = []
    for name, kinds in GROUPS.items():
        members = [case for case in cases if case.seen_in_training in kinds]
        if members:
            found.append(_group(name, members))
    return found


def _group(name: str, cases: Sequence[Case]) -> Group:
    patients = _by_patient(cases)
    tumor = [own for own in patients if any(case.true_voxels for case in own)]
    volume_unit, volumes = volume_pairs(cases)
    pooled = Overlap(
        sum(case.shared_voxels for case in cases),
        sum(case.true_voxels for case in cases),
        sum(case.predicted_voxels for case in cases),
    )
    mixed = _has_both_units(cases)
    return Group(
        name=name,
        seen_in_training=GROUPS[name],
        patients=len(patients),
        with_tumor=len(tumor),
        pooled_dice=pooled.dice,
        all_patients=_describe(patients, mixed),
        tumor_patients=_describe(tumor, mixed),
        distance_unit="mixed" if mixed else cases[0].unit,
        no_distance=sum((case.true_voxels > 0) != (case.predicted_voxels > 0) for case in cases),
        lesions=sum(case.lesions for case in cases),
        lesions_found=sum(case.lesions_found for case in cases),
        lesions_invented=sum(case.lesions_invented for case in cases),
        volumes=agreement(
            [true for true, _ in volumes.values()], [predicted for _, predicted in volumes.values()]
        ),
        volume_unit=volume_unit,
    )


def volume_pairs(cases: Sequence[Case]) -> tuple[str, dict[str, tuple[float, float]]]:
    """True and predicted volume of each patient; of a patient with several series, their mean.

    Returns:
        The unit, and the volumes by patient: in ml of those whose spacing is known; in voxels if
        that is nobody's.
    """
    unit = "ml" if any(case.true_ml is not None for case in cases) else "voxel"
    names = ("true_ml", "predicted_ml") if unit == "ml" else ("true_voxels", "predicted_voxels")
    found = {}
    for own in _by_patient(cases):
        true, predicted = (mean_of(own, name) for name in names)
        if true is not None and predicted is not None:
            found[own[0].patient_id] = (true, predicted)
    return unit, found


def _has_both_units(cases: Iterable[Case]) -> bool:
    """Whether some distances are in mm and others in voxels."""
    return len({case.unit for case in cases}) > 1


def _by_patient(cases: Iterable[Case]) -> list[list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.patient_id, []).append(case)
    return list(found.values())


def _describe(patients: Sequence[Sequence[Case]], mixed_units: bool) -> dict[str, Distribution]:
    skipped = DISTANCES if mixed_units else ()
    return {
        name: distribution([] if name in skipped else [mean_of(own, name) for own in patients])
        for name in METRICS
    }


def mean_of(cases: Sequence[Case], metric: str) -> float | None:
    """Mean of a metric over the series of one patient that have it."""
    known = [value for case in cases if (value := getattr(case, metric)) is not None]
    return float(np.mean(known)) if known else None


def differences(
    first: Sequence[Case], second: Sequence[Case]
) -> dict[str, dict[str, PairedDifference]]:
    """Second segmentation minus the first, for the patients that neither model has seen.

    Returns:
        By metric, over `all` patients that both have, and over those with `tumor`. Distances in
        different units are not averaged: their metrics have no patients.
    """
    unseen = [
        {own[0].patient_id: own for own in _by_patient(cases) if own[0].seen_in_training == "no"}
        for cases in (first, second)
    ]
    shared = sorted(unseen[0].keys() & unseen[1].keys())
    tumor = [name for name in shared if any(case.true_voxels for case in unseen[0][name])]
    mixed = _has_both_units(case for own in unseen for name in shared for case in own[name])
    return {
        metric: {
            kind: paired_difference(
                *([mean_of(own[name], metric) for name in names] for own in unseen)
            )
            for kind, names in (
                (("all", []), ("tumor", []))
                if mixed and metric in DISTANCES
                else (("all", shared), ("tumor", tumor))
            )
        }
        for metric in METRICS
    }


def summary_json(
    cases: Sequence[Case], groups: Sequence[Group], definitions: str
) -> dict[str, object]:
    """The keys that nnU-Net's summary.json has, and the groups beside them.

    `mean` and `foreground_mean` are over the cases of one group, the first of `GROUPS` that has
    any; `mean_of` names it.
    """
    per_case = [
        {
            "patient_id": case.patient_id,
            "series_id": case.series_id,
            "seen_in_training": case.seen_in_training,
            "metrics": {"1": _nnunet(case)},
        }
        for case in cases
    ]
    kinds = GROUPS[groups[0].name] if groups else ()
    members = [case for case in cases if case.seen_in_training in kinds]
    averaged = [_nnunet(case) for case in members]
    names = list(averaged[0]) if averaged else []
    mean = {
        name: _mean([value for one in averaged if (value := one[name]) is not None])
        for name in names
    }
    if _has_both_units(members):
        mean |= dict.fromkeys(("HD95", "ASSD", "NSD"))
    return {
        "foreground_mean": mean,
        "mean": {"1": mean},
        "mean_of": groups[0].name if groups else None,
        "metric_per_case": per_case,
        "groups": [asdict(group) for group in groups],
        "definitions": definitions,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _nnunet(case: Case) -> dict[str, float | None]:
    shared, truth, predicted = case.shared_voxels, case.true_voxels, case.predicted_voxels
    return {
        "Dice": case.dice,
        "IoU": case.iou,
        "TP": shared,
        "FP": predicted - shared,
        "FN": truth - shared,
        "TN": case.voxels - truth - predicted + shared,
        "n_pred": predicted,
        "n_ref": truth,
        "HD95": case.hd95,
        "ASSD": case.average_surface_distance,
        "NSD": case.nsd,
    }
