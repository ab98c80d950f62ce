import numpy as np
import pytest

from segmodel.archive.slice_format import check_slices, image
from segmodel.core import schema
from segmodel.core.geometry import Spacing
from segmodel.sources.phantom import FLAIR, LESION_FLOOR, TISSUE_CEILING, PhantomSource

SMALL = PhantomSource(count=8, slices=3, size=32, seed=0)


def lesion_pixels(source: PhantomSource, patient_id: str) -> int:
    return sum(mask.count(1) for mask in source.read(patient_id).slices["mask"].to_pylist())


def test_the_same_seed_makes_the_same_patients() -> None:
    again = PhantomSource(count=8, slices=3, size=32, seed=0)
    assert again.read("PHANTOM_0002").slices.equals(SMALL.read("PHANTOM_0002").slices)


def test_another_seed_and_another_number_make_another_patient() -> None:
    pixels = SMALL.read("PHANTOM_0001").slices["pixels"]
    assert not pixels.equals(SMALL.read("PHANTOM_0002").slices["pixels"])
    assert not pixels.equals(
        PhantomSource(count=8, slices=3, size=32, seed=1).read("PHANTOM_0001").slices["pixels"]
    )


def test_a_patient_does_not_depend_on_how_many_there_are() -> None:
    alone = PhantomSource(count=1, slices=3, size=32, seed=0)
    assert alone.read("PHANTOM_0001").slices.equals(SMALL.read("PHANTOM_0001").slices)


def test_every_fourth_patient_is_healthy_and_the_others_are_not() -> None:
    patients = SMALL.patients()
    assert patients == [f"PHANTOM_000{number}" for number in range(1, 9)]
    healthy = [patient for patient in patients if lesion_pixels(SMALL, patient) == 0]
    assert healthy == ["PHANTOM_0004", "PHANTOM_0008"]


@pytest.mark.parametrize("patient_id", ["PHANTOM_0001", "PHANTOM_0004"])
def test_a_threshold_of_flair_finds_the_lesion_to_the_voxel(patient_id: str) -> None:
    for row in SMALL.read(patient_id).slices.select(["mask", "pixels"]).to_batches()[0].to_pylist():
        flair = np.frombuffer(row["pixels"], dtype=np.uint8).reshape(32, 32, 3)[..., FLAIR]
        lesion = np.frombuffer(row["mask"], dtype=np.uint8).reshape(32, 32) == 1
        np.testing.assert_array_equal(flair >= LESION_FLOOR, lesion)
        np.testing.assert_array_equal(flair <= TISSUE_CEILING, ~lesion)


def test_spacing_follows_from_a_field_of_view_of_240_by_240_by_160_mm() -> None:
    slices = PhantomSource(count=1, slices=4, size=32, seed=0).read("PHANTOM_0001").slices
    assert set(slices["row_spacing_mm"].to_pylist()) == {7.5}  # 240 / 32
    assert set(slices["column_spacing_mm"].to_pylist()) == {7.5}
    assert set(slices["slice_spacing_mm"].to_pylist()) == {40.0}  # 160 / 4


def test_spacing_that_is_given_is_kept() -> None:
    source = PhantomSource(
        count=1,
        slices=1,
        size=32,
        seed=0,
        spacing=Spacing(slice_mm=5.0, row_mm=0.5, column_mm=0.25),
    )
    row = (
        source.read("PHANTOM_0001")
        .slices.select(["slice_spacing_mm", "row_spacing_mm", "column_spacing_mm"])
        .to_pylist()[0]
    )
    assert list(row.values()) == [5.0, 0.5, 0.25]


def test_a_patient_keeps_to_the_format_of_the_archive() -> None:
    record = SMALL.read("PHANTOM_0003")
    assert record.slices.schema.equals(schema.ARCHIVE)
    assert record.slices["slice_index"].to_pylist() == [1, 2, 3]
    assert record.slices["slice_id"].to_pylist() == [
        "PHANTOM_0003_1",
        "PHANTOM_0003_2",
        "PHANTOM_0003_3",
    ]
    assert check_slices(record.slices, channels=len(SMALL.channels)) == []
    assert image(record.slices["pixels"][1], 32, 32, 3).any()
    assert record.rejects.num_rows == 0
