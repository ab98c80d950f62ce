"""What a dry run prints."""

from segmodel.ingestion.dry_run import choices_table, series_table


def choice(number: int, sequence: str | None, chosen: bool, because: str) -> dict[str, object]:
    return {
        "patient_id": "P1",
        "study_date": None,
        "series_number": number,
        "description": f"scan {number}",
        "images": 20,
        "plane": "axial",
        "sequence": sequence,
        "chosen": chosen,
        "because": because,
    }


def test_the_table_of_series_says_what_each_is_taken_for_and_why() -> None:
    table = choices_table(
        [
            choice(3, None, False, "localizer"),
            choice(1, "FLAIR", True, "description flair"),
            choice(2, "FLAIR", False, "description flair; series 1 is preferred"),
        ]
    )
    header, first, second, third = table.splitlines()
    assert header.split() == [
        "patient",
        "date",
        "series",
        "images",
        "plane",
        "chosen",
        "as",
        "because",
    ]
    assert first.split()[-3:] == ["FLAIR", "description", "flair"]
    assert "(FLAIR)" in second
    assert third.endswith("localizer")


def test_without_a_choice_the_table_says_what_becomes_a_channel_and_why() -> None:
    channels = [{"name": "FLAIR", "because": "named ..flair"}]
    row = {"patient_id": "P1", "series_id": "000", "slices": 155, "channels": channels}
    table = series_table(
        [
            {**row, "label_voxels": [(1, 20), (4, 3)]},
            {**row, "patient_id": "P0", "label_voxels": None},
        ]
    )
    assert table.splitlines() == [
        "patient  series  slices  mask labels  channels",
        "P0       000     155                  FLAIR: named ..flair",
        "P1       000     155     1, 4         FLAIR: named ..flair",
    ]
