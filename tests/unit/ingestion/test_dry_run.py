"""What a dry run prints."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from segmodel.ingestion import dry_run
from segmodel.ingestion.dry_run import choices_table, series_table
from segmodel.settings.ingest import IngestConfig
from tests.support import dicoms, niftis


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


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(function: Callable[..., Any], items: Iterable[Any], lost: Any = None) -> Iterator[Any]:
        for item in items:
            died = item[1] == "DEADLY"
            yield lost(item, "its reader died") if died else function(item)

    monkeypatch.setattr(dry_run, "map_on_ray", here)
    monkeypatch.setattr(dry_run.ray_cluster, "connect", nullcontext)


@pytest.mark.usefixtures("without_ray")
def test_a_dry_run_shows_the_table_of_its_format_and_what_is_left_out(tmp_path: Path) -> None:
    niftis.save(tmp_path / "nifti" / "P_flair.nii.gz", niftis.head())
    (tmp_path / "nifti" / "Q_flair.nii.gz").write_bytes(b"no image")
    niftis.save(tmp_path / "nifti" / "DEADLY_flair.nii.gz", niftis.head())
    dicoms.series(tmp_path / "dicom", "flair", [0.0, 5.0])
    shown = {
        kind: dry_run.show_choices(
            IngestConfig(archive=f"{tmp_path}/a", format=kind, source=f"{tmp_path}/{kind}")
        ).splitlines()
        for kind in ("nifti", "dicom")
    }
    assert shown["nifti"][0].startswith("patient  series  slices")
    assert shown["nifti"][1].startswith("P        P       4")
    assert "DEADLY_flair.nii.gz: its reader died" in shown["nifti"][2]
    assert "Q_flair.nii.gz: not a NIfTI file" in shown["nifti"][3]
    assert shown["nifti"][-1] == "1 of 3 patients have usable data: 4 slices"
    assert shown["dicom"][0].split()[-3:] == ["chosen", "as", "because"]
    assert shown["dicom"][-1] == "1 of 1 patients have usable data: 2 slices"
    assert not (tmp_path / "a").exists()
