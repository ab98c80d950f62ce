import pytest

from segmodel.core.errors import ArchiveError
from segmodel.data.splits import split_patients

TEN = [f"P{number}" for number in range(10)]


def test_a_fifth_of_the_patients_validates_and_none_is_on_both_sides() -> None:
    split = split_patients(TEN, seed=0)
    assert len(split.train) == 8
    assert len(split.valid) == 2
    assert sorted(split.train + split.valid) == TEN


def test_split_depends_neither_on_order_nor_on_how_often_a_patient_comes() -> None:
    assert split_patients([*reversed(TEN), *TEN[:5]], seed=3) == split_patients(TEN, seed=3)


def test_another_seed_makes_another_split() -> None:
    assert len({split_patients(TEN, seed=seed).valid for seed in range(5)}) > 1


@pytest.mark.parametrize(("patients", "valid"), [(2, 1), (3, 1), (7, 1), (8, 2), (110, 22)])
def test_each_side_has_at_least_one_patient(patients: int, valid: int) -> None:
    split = split_patients([f"P{number}" for number in range(patients)], seed=0)
    assert (len(split.train), len(split.valid)) == (patients - valid, valid)


@pytest.mark.parametrize("patients", [[], ["P1"], ["P1", "P1"]])
def test_fewer_than_two_patients_cannot_be_split(patients: list[str]) -> None:
    with pytest.raises(
        ArchiveError, match=f"at least two annotated patients.*got {len(set(patients))}"
    ):
        split_patients(patients, seed=0)
