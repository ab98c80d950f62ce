"""Patients from DICOM files: which series become channels, and what is left out."""

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest

from segmodel.core.errors import SourceError
from segmodel.core.source_files import SourceFiles
from segmodel.sources.base import PatientRecord
from segmodel.sources.dicom import DicomOptions, DicomSource, scan_folder
from segmodel.sources.dicom_scan import hash_id
from segmodel.sources.series_rules import load_rules
from segmodel.storage import store
from tests.support.dicoms import dataset, save, series, uid

KEY = b"0123456789abcdef"
UP = [0.0, 5.0, 10.0]


def scan(folder: Path, **options: object) -> DicomSource:
    return scan_folder(
        str(folder), DicomOptions(rules=load_rules(None), percentiles=(0, 100), **options)
    )


def read(folder: Path, **options: object) -> PatientRecord:
    return scan(folder, **options).read("P1")


def study(folder: Path) -> None:
    """FLAIR, T1 before and after contrast, on one grid, and a localizer."""
    series(folder, "flair", UP)
    series(folder, "t1", UP, 200, SeriesDescription="AX T1", SeriesNumber=3)
    series(folder, "t1c", UP, 300, SeriesDescription="AX T1 POST", SeriesNumber=7)
    series(folder, "loc", [0.0], SeriesDescription="Localizer", ImageType=["ORIGINAL", "LOCALIZER"])


def first_column(record: PatientRecord) -> list[tuple[int, float]]:
    """Index and spacing of each slice."""
    rows = record.slices.to_pylist()
    return [(row["slice_index"], row["slice_spacing_mm"]) for row in rows]


def test_series_of_a_study_become_the_channels_of_one_series(tmp_path: Path) -> None:
    study(tmp_path)
    record = read(tmp_path)
    (row,) = record.series.to_pylist()
    assert row["series_id"] == uid("flair")
    assert [channel["source_series_uid"] for channel in row["channels"]] == [
        uid("t1"),
        uid("flair"),
        uid("t1c"),
    ]
    assert str(row["study_date"]) == "2020-01-31"
    assert first_column(record) == [(1, 5), (2, 5), (3, 5)]
    assert record.slices["sop_instance_uid"].to_pylist() == [uid(f"flair {n}") for n in range(3)]


def test_the_verdict_on_every_series_is_in_the_table(tmp_path: Path) -> None:
    study(tmp_path)
    rows = {row["series_number"]: row for row in read(tmp_path).choices.to_pylist()}
    chosen = {row["description"]: row["sequence"] for row in rows.values() if row["chosen"]}
    assert chosen == {
        "AX T2 FLAIR": "FLAIR",
        "AX T1": "pre-contrast",
        "AX T1 POST": "post-contrast",
    }
    (left_out,) = [row for row in read(tmp_path).choices.to_pylist() if not row["chosen"]]
    assert (left_out["description"], left_out["because"]) == ("Localizer", "localizer")


def test_names_and_folders_of_files_change_nothing(tmp_path: Path) -> None:
    study(tmp_path / "a")
    for number, path in enumerate(sorted((tmp_path / "a").iterdir(), reverse=True)):
        folder = tmp_path / "b" / f"x{number % 3}" / "y"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / f"IM{number:04d}")
    study(tmp_path / "a")
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    assert first.slices.drop_columns("source_uri").equals(second.slices.drop_columns("source_uri"))
    assert first.series.equals(second.series)


def test_a_missing_slice_is_missing_in_the_archive(tmp_path: Path) -> None:
    series(tmp_path, "flair", [0.0, 5.0, 15.0])
    assert first_column(read(tmp_path)) == [(1, 5), (2, 5), (4, 5)]


def test_a_sequence_in_other_coordinates_counts_as_missing(tmp_path: Path) -> None:
    series(tmp_path, "flair", UP)
    more = {"SeriesDescription": "AX T1", "PixelSpacing": [1, 1]}
    series(tmp_path, "t1", UP, FrameOfReferenceUID=uid("other"), **more)
    because = read(tmp_path).series.to_pylist()[0]["channels"][0]["because"]
    assert because.startswith("FLAIR stands in for it: its coordinates are others")


def test_of_two_t1_series_that_in_flair_s_coordinates_is_taken(tmp_path: Path) -> None:
    series(tmp_path, "flair", UP)
    series(tmp_path, "t1", UP, SeriesDescription="AX T1")
    elsewhere = {"SeriesDescription": "AX T1 3D", "FrameOfReferenceUID": uid("navigation")}
    series(tmp_path, "finer", [0.0, 2.5, 5.0, 7.5, 10.0], **elsewhere)
    channel = read(tmp_path).series.to_pylist()[0]["channels"][0]
    assert channel["source_series_uid"] == uid("t1")


def test_a_sequence_on_another_grid_is_interpolated(tmp_path: Path) -> None:
    series(tmp_path, "flair", UP)
    series(tmp_path, "t1", [-5.0, 2.5, 10.0], SeriesDescription="AX T1")
    channel = read(tmp_path).series.to_pylist()[0]["channels"][0]
    assert channel["source_series_uid"] == uid("t1")
    assert "interpolated to this grid" in channel["because"]


def test_a_study_without_flair_is_a_reject_that_says_what_there_is(tmp_path: Path) -> None:
    series(tmp_path, "t1", UP, SeriesDescription="AX T1")
    series(tmp_path, "ep2d", UP, ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])
    record = read(tmp_path)
    (reject,) = record.rejects.to_pylist()
    assert record.slices.num_rows == 0
    assert reject["source_uri"].startswith("study of 2020-01-31, ")
    assert "no FLAIR in this study; sequences found: pre-contrast" in reject["reason"]
    assert "3 images: Siemens mosaic" in reject["reason"]


def test_uneven_slices_have_no_spacing_and_the_series_says_why(tmp_path: Path) -> None:
    series(tmp_path, "flair", [0.0, 5.0, 11.3])
    record = read(tmp_path)
    assert record.slices["slice_spacing_mm"].null_count == 3
    assert "uneven" in record.series.to_pylist()[0]["no_volume_reason"]


def test_two_studies_are_two_series(tmp_path: Path) -> None:
    series(tmp_path, "flair", UP)
    series(tmp_path, "later", UP, StudyInstanceUID=uid("later"), StudyDate="20210131")
    record = read(tmp_path)
    assert set(record.slices["series_id"].to_pylist()) == {uid("flair"), uid("later")}
    dates = [str(row["study_date"]) for row in record.series.to_pylist()]
    assert sorted(dates) == ["2020-01-31", "2021-01-31"]


def known(record: PatientRecord) -> dict[str, SourceFiles]:
    names = ("source_files", "source_listing", "source_content")
    return {
        row["series_id"]: SourceFiles(*(row[name] for name in names))
        for row in record.series.to_pylist()
    }


def test_tonight_s_study_comes_in_and_last_night_s_is_passed_over(tmp_path: Path) -> None:
    series(tmp_path, "flair", UP)
    before = known(read(tmp_path))
    series(tmp_path, "later", UP, StudyInstanceUID=uid("later"))
    record = scan(tmp_path).read("P1", before)
    assert set(record.slices["series_id"].to_pylist()) == {uid("later")}
    assert record.rejects.num_rows == 0
    assert record.choices["series_uid"].to_pylist() == [uid("later")]


def test_a_known_series_that_got_more_slices_is_a_reject(tmp_path: Path) -> None:
    series(tmp_path, "flair", UP)
    before = known(read(tmp_path))
    series(tmp_path, "flair", [*UP, 15.0])
    (reject,) = scan(tmp_path).read("P1", before).rejects.to_pylist()
    assert "made from other files" in reject["reason"]


def test_a_film_of_another_modality_is_left_out_and_no_error(tmp_path: Path) -> None:
    study(tmp_path)
    film = {"Modality": "US", "NumberOfFrames": 2, "SeriesInstanceUID": uid("film")}
    save(tmp_path / "film", np.zeros((2, 4, 6), np.uint16), **film)
    record = read(tmp_path)
    assert record.rejects.num_rows == 0
    assert "modality US, not MR" in record.choices["because"].to_pylist()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ImagePositionPatient", [0, 0, math.nan]),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        ("ImageOrientationPatient", [2, 0, 0, 0, 2, 0]),
        ("ImageOrientationPatient", [1, 0, 0, 0.6, 0.8, 0]),
        ("PixelSpacing", [0, 1]),
        ("PixelSpacing", [1, -1]),
    ],
)
def test_an_image_without_a_sensible_place_costs_no_other_image(
    tmp_path: Path, name: str, value: list[object]
) -> None:
    series(tmp_path, "flair", UP)
    more = {"SOPInstanceUID": uid("odd"), name: value}
    save(tmp_path / "odd", np.ones((4, 6), np.uint16), 20.0, **more)
    record = read(tmp_path)
    assert first_column(record) == [(1, 5), (2, 5), (3, 5)]
    assert record.rejects["reason"].to_pylist() == [
        "1 images without position, orientation or pixel spacing"
    ]


def test_a_damaged_image_costs_its_sequence_and_not_the_study(tmp_path: Path) -> None:
    study(tmp_path)
    content = (tmp_path / "t1_1.dcm").read_bytes()
    (tmp_path / "t1_1.dcm").write_bytes(content[:-30])
    record = read(tmp_path)
    assert record.slices.num_rows == 3
    assert record.rejects["stage"].to_pylist() == ["sequence"]
    assert uid("t1 1") in record.rejects["reason"][0].as_py()


def test_other_files_are_counted_and_broken_ones_listed(tmp_path: Path) -> None:
    series(tmp_path, "flair", UP)
    (tmp_path / "README.txt").write_text("text")
    save(tmp_path / "nobody.dcm", np.zeros((4, 6), np.uint16), PatientID=None)
    source = scan(tmp_path)
    assert dict(source.scan.no_images) == {"not DICOM": 1}
    (problem,) = source.problems()
    assert (Path(problem["source_uri"]).name, problem["reason"]) == (
        "nobody.dcm",
        "has no PatientID",
    )


def test_a_gap_that_would_fill_the_memory_is_a_reject(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6), np.uint16)
    for number, z in enumerate((0.0, 1.0, 50_000_000.0)):
        save(tmp_path / f"{number}", pixels, z, SOPInstanceUID=uid(f"far {number}"))
    (reject,) = read(tmp_path).rejects.to_pylist()
    assert "would make 50000001 x 4 x 6 voxels, missing slices included" in reject["reason"]


def test_a_header_that_claims_a_huge_image_is_a_reject(tmp_path: Path) -> None:
    for number, z in enumerate(UP):
        pixels = np.zeros((4, 6), np.uint16)
        made = dataset(pixels, z, SOPInstanceUID=uid(f"huge {number}"))
        made.Rows = made.Columns = 65_535
        made.save_as(tmp_path / f"{number}", enforce_file_format=True)
    (reject,) = read(tmp_path).rejects.to_pylist()
    assert "would make 3 x 65535 x 65535 voxels" in reject["reason"]


def test_a_file_that_goes_while_the_source_is_read_is_a_reject(tmp_path: Path) -> None:
    series(tmp_path, "flair", [*UP, 15.0])
    source = scan(tmp_path)
    (tmp_path / "flair_3.dcm").unlink()
    record = source.read("P1")
    assert first_column(record) == [(1, 5), (2, 5), (3, 5)]
    (reject,) = record.rejects.to_pylist()
    assert reject["reason"] == "cannot be read: No such file or directory"


def test_files_that_are_no_images_are_counted_by_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series(tmp_path, "flair", UP)
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as packed:
        packed.write(tmp_path / "flair_0.dcm")
    (tmp_path / "notes.txt").write_text("text")
    save(tmp_path / "shot", np.zeros((4, 6), np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    assert scan(tmp_path).patients() == ["P1"]
    assert "3 files are not images (2 not DICOM, 1 secondary capture)" in capsys.readouterr().out


def test_two_sagittal_slices_are_no_volume(tmp_path: Path) -> None:
    sagittal = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "PixelSpacing": [1, 1]}
    for x in (0.0, 1.0):
        more = {"ImagePositionPatient": [x, 0, 0], "SOPInstanceUID": uid(f"x {x}"), **sagittal}
        save(tmp_path / f"{x}", np.ones((4, 6), np.uint16), **more)
    (reject,) = read(tmp_path).rejects.to_pylist()
    assert "its FLAIR has 2 sagittal slices, too few" in reject["reason"]
    assert read(tmp_path, any_plane=True).slices.num_rows == 4


def test_files_on_s3_give_the_same_slices(tmp_path: Path, s3_bucket: str) -> None:
    study(tmp_path)
    prefix = f"{s3_bucket}/dicom-source/night"
    store.upload_folder(prefix, str(tmp_path))
    options = DicomOptions(rules=load_rules(None), percentiles=(0, 100))
    record = scan_folder(prefix, options).read("P1")
    assert record.slices["pixels"].equals(read(tmp_path).slices["pixels"])
    assert record.slices["source_uri"][0].as_py() == f"{prefix}/flair_0.dcm"


def test_links_that_lead_in_a_circle_end(tmp_path: Path) -> None:
    series(tmp_path / "a", "flair", UP)
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a", target_is_directory=True)
    assert first_column(read(tmp_path)) == [(1, 5), (2, 5), (3, 5)]


def test_a_folder_without_an_image_is_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("text")
    with pytest.raises(
        SourceError, match="no DICOM image below it \\(1 not DICOM\\); is --format dicom"
    ):
        scan(tmp_path)


def test_hashed_ids_are_the_same_every_night_and_show_nothing_of_the_patient(
    tmp_path: Path,
) -> None:
    study(tmp_path / "DOE_JANE")
    for name in ("t1_1.dcm", "t1c_1.dcm"):
        path = tmp_path / "DOE_JANE" / name
        path.write_bytes(path.read_bytes()[:-30] if "c" in name[:3] else b"\0" * 128 + b"DICM no")
    source = scan(tmp_path, hash_key=KEY)
    (patient,) = source.patients()
    assert patient == hash_id(KEY, "P1") == scan(tmp_path, hash_key=KEY).patients()[0]
    assert patient != hash_id(b"another key 1234", "P1")
    record = source.read(patient)
    shown = "".join(
        str(table.to_pylist())
        for table in (record.slices, record.series, record.rejects, record.choices)
    )
    assert record.slices.num_rows == 3
    for secret in ("P1", "DOE", "JANE", "Secret", "19500102"):
        assert secret not in shown + str(source.problems()), secret
    assert KEY.decode() not in repr(source)


def test_only_holds_no_more_than_some_patients(tmp_path: Path) -> None:
    series(tmp_path / "a", "flair", UP)
    series(tmp_path / "b", "other", UP, PatientID="P2")
    source = scan(tmp_path).restricted_to("P2")
    assert source.patients() == ["P2"]
    assert source.read("P2").slices.num_rows == 3
