"""Whether an archive's patient was made from the files that the source has now."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from segmodel.core.source_files import SourceFiles
from segmodel.sources.lgg import LggSource
from segmodel.storage import store
from tests.support.tiffs import PATIENT, gray, rgb, save


@pytest.fixture
def three_files(tmp_path: Path) -> LggSource:
    save(tmp_path / PATIENT, "a_1.tif", rgb(value=1))
    save(tmp_path / PATIENT, "a_1_mask.tif", gray())
    save(tmp_path / PATIENT, "a_2.tif", rgb(value=2))
    return LggSource(str(tmp_path), None)


def files_of(source: LggSource) -> SourceFiles:
    (row,) = source.read(PATIENT).series.to_pylist()
    return SourceFiles(row["source_files"], row["source_listing"], row["source_content"])


def difference_of(source: LggSource, before: SourceFiles) -> list[str]:
    """Reasons of the rejects when the patient is in the archive already."""
    again = source.read(PATIENT, {PATIENT: before})
    assert again.slices.num_rows == 0
    return again.rejects["reason"].to_pylist()


def test_a_copy_of_the_same_files_is_no_difference(three_files: LggSource, tmp_path: Path) -> None:
    before = files_of(three_files)
    assert before.count == 3
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / PATIENT, copy / PATIENT, copy_function=shutil.copyfile)
    assert difference_of(LggSource(str(copy), None), before) == []


def test_files_that_were_not_touched_are_compared_without_reading_them(
    three_files: LggSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(three_files)
    monkeypatch.setattr(store, "read_bytes", None)
    assert difference_of(three_files, before) == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda folder: save(folder, "a_3.tif", rgb()), "3 files then, 4 now"),
        (lambda folder: (folder / "a_1_mask.tif").unlink(), "3 files then, 2 now"),
        (lambda folder: save(folder, "a_2.tif", rgb(value=3)), "another name or content"),
        (lambda folder: (folder / "a_2.tif").rename(folder / "a_3.tif"), "another name or content"),
    ],
)
def test_a_file_more_or_less_or_another_one_is_a_difference(
    three_files: LggSource, tmp_path: Path, change: Callable[[Path], None], difference: str
) -> None:
    before = files_of(three_files)
    change(tmp_path / PATIENT)
    (reason,) = difference_of(three_files, before)
    assert difference in reason
    assert "ingest all patients with --overwrite" in reason
