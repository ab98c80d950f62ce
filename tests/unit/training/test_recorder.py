"""What the first worker writes."""

from segmodel.training.recorder import rank_patients


def patient(name: str, dice: float, tumor_voxels: int) -> dict[str, str]:
    return {"patient_id": name, "dice": str(dice), "tumor_voxels": str(tumor_voxels)}


def names(rows: list[dict[str, str]]) -> list[str]:
    return [row["patient_id"] for row in rows]


def test_the_best_patient_to_show_is_one_with_tumor() -> None:
    rows = [patient("healthy", 1.0, 0), patient("poor", 0.25, 7), patient("good", 0.75, 3)]
    assert names(rank_patients(rows)) == ["good", "poor"]
    assert names(rank_patients(rows[:1])) == ["healthy"]
