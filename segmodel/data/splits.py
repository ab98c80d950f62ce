"""Splits patients into training and validation patients."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from segmodel.core.errors import ArchiveError

VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """The training and the validation patients; no patient is in both."""

    train: tuple[str, ...]
    valid: tuple[str, ...]


def split_patients(patient_ids: Iterable[str], seed: int) -> Split:
    """Split the patients: a fifth for validation; each set has at least one.

    They are ordered by a hash of `seed` and id; the first ones are for validation.

    The split depends on the set of ids and the seed alone. All slices of a patient go to one side.

    Raises:
        ArchiveError: fewer than two patients.
    """
    patients = sorted(set(patient_ids))
    if len(patients) < 2:
        raise ArchiveError(
            "training needs at least two annotated patients, one to train and one to validate; "
            f"got {len(patients)}"
        )
    ordered = sorted(
        patients, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    )
    n_valid = min(max(round(len(ordered) * VALIDATION_SHARE), 1), len(ordered) - 1)
    return Split(train=tuple(sorted(ordered[n_valid:])), valid=tuple(sorted(ordered[:n_valid])))
