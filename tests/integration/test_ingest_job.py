"""jobs.ingest from end to end on a real local Ray."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import ingest
from segmodel.archive.reader import Archive
from segmodel.core.errors import ArchiveError, LeaseError, SourceError
from segmodel.storage import folder_lock
from tests.support import scans

pytestmark = pytest.mark.usefixtures("local_ray")


def make_patient(folder: Path, slices: int) -> None:
    folder.mkdir(parents=True)
    for number in range(1, slices + 1):
        image = np.full((6, 8, 3), number, dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{folder.name}_{number}.tif")
        Image.fromarray(np.eye(6, 8, dtype=np.uint8) * 255).save(
            folder / f"{folder.name}_{number}_mask.tif"
        )


def test_a_folder_of_scans_becomes_an_archive_and_bad_files_become_rejects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, archive = tmp_path / "scans", tmp_path / "archive"
    for patient, slices in (("P_B", 11), ("P_A", 2), ("P_C", 1)):
        make_patient(source / patient, slices)
    (source / "README.md").write_text("not a patient")
    (source / "P_B" / "P_B_3.tif").write_bytes(b"II*\0 and nothing more")
    arguments = [
        "--source",
        str(source),
        "--format",
        "lgg",
        "--archive",
        str(archive),
        "--tracking",
        "none",
    ]
    assert ingest.main([*arguments, "--spacing-mm", "1", "1.5", "5"]) == 0
    printed = capsys.readouterr().out
    assert "3 patients, 13 slices (13 with a mask)" in printed
    assert "2 files or series were left out" in printed

    table = pq.read_table(scans.files(archive)[0])
    assert table["slice_id"].to_pylist() == [
        "P_A_1",
        "P_A_2",
        *(f"P_B_{n}" for n in (1, 2, *range(4, 12))),
        "P_C_1",
    ]
    row = table.to_pylist()[1]
    assert (row["height"], row["width"], row["pixels"]) == (6, 8, bytes([2]) * 6 * 8 * 3)
    assert row["mask"] == np.eye(6, 8, dtype=np.uint8).tobytes()
    assert (row["row_spacing_mm"], row["column_spacing_mm"], row["slice_spacing_mm"]) == (
        1.0,
        1.5,
        5.0,
    )
    rejects = pq.read_table(archive / "rejects").to_pylist()
    assert [Path(reject["source_uri"]).name for reject in rejects] == [
        "P_B_3.tif",
        "P_B_3_mask.tif",
    ]
    assert rejects[0]["reason"].startswith("unreadable TIFF")
    info = Archive(str(archive)).info
    assert (info.patients, info.slices, info.rejects) == (3, 13, 2)

    with pytest.raises(ArchiveError, match="already holds an archive; give --overwrite"):
        ingest.main(arguments)
    assert ingest.main([*arguments, "--overwrite"]) == 0
    assert pq.read_table(scans.files(archive)[0])["slice_spacing_mm"].null_count == 13


def test_a_source_without_patients_is_refused(tmp_path: Path) -> None:
    arguments = [
        "--format",
        "lgg",
        "--archive",
        str(tmp_path / "archive"),
        "--tracking",
        "none",
        "--source",
    ]
    with pytest.raises(SourceError, match="no such folder"):
        ingest.main([*arguments, str(tmp_path / "missing")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no patient's folder"):
        ingest.main([*arguments, str(tmp_path / "empty")])


def test_a_source_without_a_usable_slice_leaves_nothing_behind(tmp_path: Path) -> None:
    make_patient(tmp_path / "scans" / "P_A", 2)
    for path in (tmp_path / "scans" / "P_A").glob("*_?.tif"):
        path.write_bytes(b"no TIFF")
    arguments = ["--format", "lgg", "--source", f"{tmp_path}/scans", "--archive", f"{tmp_path}/new"]
    with pytest.raises(SourceError, match="no usable slice of 1 patients"):
        ingest.main(arguments)  # with a tracker, which would write into the archive's folder
    assert not (tmp_path / "new").exists()


def test_a_nightly_folder_that_grows_is_added_to_the_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, archive = tmp_path / "scans", tmp_path / "archive"
    for patient in ("P_B", "P_D"):
        make_patient(source / patient, 2)
    arguments = ["--source", str(source), "--format", "lgg", "--archive", str(archive)]
    arguments += ["--tracking", "none"]
    assert ingest.main(arguments) == 0
    for patient in ("P_A", "P_C"):
        make_patient(source / patient, 1)
    (source / "P_D" / "P_D_2.tif").unlink()
    capsys.readouterr()
    assert ingest.main([*arguments, "--append"]) == 0
    printed = capsys.readouterr().out
    assert "2 patients added, 2 were already there" in printed
    assert "4 patients, 6 slices" in printed
    assert "1 files or series were left out" in printed
    (reject,) = pq.read_table(archive / "rejects").to_pylist()
    assert (reject["patient_id"], reject["source_uri"]) == ("P_D", f"{source}/P_D")
    assert "made from other files (4 files then, 3 now)" in reject["reason"]
    before = (archive / "archive.json").read_bytes()
    assert ingest.main([*arguments, "--append"]) == 0
    assert "0 patients added, 4 were already there" in capsys.readouterr().out
    assert (archive / "archive.json").read_bytes() == before


def test_of_two_that_add_to_an_archive_at_once_the_second_is_refused(tmp_path: Path) -> None:
    archive, first, more = tmp_path / "archive", tmp_path / "first", tmp_path / "more"
    make_patient(first / "P_A", 1)
    make_patient(more / "P_X", 1)
    arguments = ["--format", "lgg", "--archive", str(archive), "--tracking", "none", "--source"]
    assert ingest.main([*arguments, str(first)]) == 0
    add = [*arguments, str(more), "--append"]
    with (
        folder_lock.acquire_lock(str(archive)),
        pytest.raises(LeaseError, match=r"is in use by .*give another --archive"),
    ):
        ingest.main(add)
    assert Archive(str(archive)).info.patients == 1
    with pytest.raises(ArchiveError, match="no archive"):
        ingest.main([*add, "--archive", str(tmp_path / "nowhere")])
    assert not (tmp_path / "nowhere").exists()


def test_more_left_out_patients_than_allowed_are_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_patient(tmp_path / "scans" / "P_A", 1)
    make_patient(tmp_path / "scans" / "P_B", 1)
    (tmp_path / "scans" / "P_B" / "P_B_1.tif").write_bytes(b"no TIFF")
    flags = ["--source", f"{tmp_path}/scans", "--format", "lgg", "--tracking", "none"]
    assert ingest.main([*flags, "--archive", f"{tmp_path}/a"]) == 3
    assert (
        "1 patients have no usable data, more than --max-rejected allows (1.0% of all)"
        in capsys.readouterr().err
    )
    assert ingest.main([*flags, "--archive", f"{tmp_path}/b", "--max-rejected", "0.5"]) == 0
