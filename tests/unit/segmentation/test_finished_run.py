"""What jobs.segment and jobs.summarize do with a complete run, made by hand, without Ray."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import segment, summarize
from segmodel.analysis import volumes
from segmodel.archive.reader import Archive
from segmodel.core import schema
from segmodel.core.errors import FingerprintError, SegmentationError
from segmodel.runs import finished_run, run_file, run_folder
from segmodel.runs.run_file import Counts
from segmodel.segmentation import driver
from segmodel.segmentation.driver import prepare
from segmodel.settings.segment import SegmentConfig
from segmodel.storage import store
from tests.support import standin
from tests.support.scans import describe_series, scans, write
from tests.support.segmented import quarantine_row


@pytest.fixture
def folder(tmp_path: Path, numbered_ingests: None) -> Path:
    """An archive of one patient with 4 slices, a model, and a finished run beside them."""
    write(tmp_path / "archive", scans("A", 4))
    standin.save(str(tmp_path / "model"), 32)
    finish(tmp_path)
    return tmp_path


def places(folder: Path) -> dict[str, str]:
    names = (("archive", "archive"), ("checkpoint", "model"), ("output", "run"))
    return {name: str(folder / place) for name, place in names}


def finish(folder: Path, *stages: str) -> None:
    """Make the run anew; so many slices are in quarantine, each with its stage."""
    ready = prepare(SegmentConfig(**places(folder), tracking="none", precision="fp32"))
    run, output = ready.run, str(folder / "run")
    run = run_folder.begin(output, run, ready.plan.archive, ready.work)
    (shard,) = ready.work.plan
    rows = [quarantine_row(index, stage=stage) for index, stage in enumerate(stages, 1)]
    lost = pa.Table.from_pylist(rows, schema=schema.QUARANTINE)
    store.publish_table(store.join(output, "quarantine", shard.output_file), lost)
    masks = store.join(output, "masks", shard.output_file)
    store.publish_table(masks, schema.MASKS.empty_table())
    volumes.summarise(output, {}.get)
    counts = Counts(slices=4, segmented=4, quarantined=0, blank=0, patients=1, shards=1)
    run_file.write(output, replace(run, counts=counts, finished=run_file.now()))


def run_json(folder: Path) -> dict:
    return json.loads((folder / "run/run.json").read_text())


def segment_again(folder: Path, *more: str) -> int:
    flags = [f"--{name}={place}" for name, place in places(folder).items()]
    return segment.main([*flags, "--tracking=none", *more])


def summarize_again(folder: Path, *more: str) -> int:
    return summarize.main([f"--segmentation={folder / 'run'}", "--tracking=none", *more])


def test_blank_slices_are_counted_apart_and_are_no_failures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(folder, "blank", "blank")
    assert segment_again(folder, "--max-quarantined=0") == 0
    printed = capsys.readouterr().out
    assert "2 of 4 slices segmented, 0 in quarantine, 2 blank, 1 patients" in printed


def test_a_failure_among_blank_slices_counts_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(folder, "blank", "read")
    assert segment_again(folder, "--max-quarantined=0.25") == 0  # 1 of 4
    assert segment_again(folder, "--max-quarantined=0.24") == 3
    assert "1 in quarantine, 1 blank" in capsys.readouterr().out


def test_the_settings_of_a_summary_are_in_run_json(folder: Path) -> None:
    assert summarize_again(folder, "--keep-largest") == 0
    assert run_json(folder)["summary"] == {"keep_largest": True, "min_volume_ml": None}
    assert segment_again(folder, "--min-volume-ml=2") == 0
    assert run_json(folder)["summary"] == {"keep_largest": False, "min_volume_ml": 2.0}
    assert summarize_again(folder) == 0
    assert run_json(folder)["summary"] is None


def test_a_finished_run_gets_its_page_when_it_has_none_and_a_new_one_with_new_tables(
    folder: Path,
) -> None:
    page = folder / "run/report.html"
    assert segment_again(folder) == 0
    assert "Postprocessing</dt><dd>none" in page.read_text()
    assert segment_again(folder, "--keep-largest") == 0
    assert "Postprocessing</dt><dd>largest component" in page.read_text()
    assert summarize_again(folder) == 0
    assert "Postprocessing</dt><dd>none" in page.read_text()


def test_the_page_says_the_exit_code_of_the_last_call(folder: Path) -> None:
    finish(folder, "read")
    run = run_file.read(str(folder / "run"))
    counts = Counts(slices=4, segmented=3, quarantined=1, blank=0, patients=1, shards=1)
    run_file.write(str(folder / "run"), replace(run, counts=counts))
    page = folder / "run/report.html"
    assert segment_again(folder, "--max-quarantined=0.24") == 3
    assert "25.0% of the slices are in quarantine, 24.0% were allowed" in page.read_text()
    assert segment_again(folder, "--max-quarantined=0.25") == 0
    assert "were allowed" not in page.read_text()
    assert segment_again(folder, "--max-quarantined=0.1", "--keep-largest") == 3
    assert "10.0% were allowed" in page.read_text()


def test_a_summary_that_broke_off_is_made_again_and_not_evaluated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):  # noqa: N818 - no error of ours
        pass

    def killed(*_: object) -> None:
        raise Killed

    archive = Archive(str(folder / "archive"))
    with monkeypatch.context() as patch:
        patch.setattr(volumes, "tables", killed)
        with pytest.raises(Killed):
            summarize_again(folder, "--keep-largest")
    with pytest.raises(FingerprintError, match=r"jobs\.summarize was interrupted there"):
        finished_run.check_run(str(folder / "run"), archive)
    assert segment_again(folder) == 0  # the settings of before
    assert run_json(folder)["summary"] is None
    assert finished_run.check_run(str(folder / "run"), archive) == {}


def test_without_all_its_masks_a_run_is_neither_summarized_nor_evaluated(folder: Path) -> None:
    table = (folder / "run/volumes.csv").read_bytes()
    for masks in (folder / "run/masks").iterdir():
        masks.unlink()
    with pytest.raises(FingerprintError, match="masks holds 0 files, not 1"):
        summarize_again(folder)
    assert (folder / "run/volumes.csv").read_bytes() == table
    with pytest.raises(FingerprintError, match="masks holds 0 files, not 1"):
        finished_run.check_run(str(folder / "run"), Archive(str(folder / "archive")))


def test_a_table_that_is_gone_is_named_and_the_run_is_not_finished(folder: Path) -> None:
    ready = prepare(SegmentConfig(**places(folder), tracking="none"))
    assert driver._is_finished(ready)
    (folder / "run/volumes.parquet").unlink()
    with pytest.raises(SegmentationError, match=r"volumes\.parquet .* jobs\.segment command"):
        summarize_again(folder)
    assert not driver._is_finished(ready)


def test_a_summary_of_a_folder_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(FingerprintError, match="run folder of jobs"):
        summarize.main([f"--segmentation={tmp_path / 'typo'}", "--tracking=none"])
    assert not (tmp_path / "typo").exists()


def study_dates(folder: Path) -> list[list[date | None]]:
    run = folder / "run"
    names = ("volumes.parquet", "series.parquet")
    return [pq.read_table(run / name)["study_date"].to_pylist() for name in names]


def test_the_tables_have_the_dates_of_studies_and_keep_them_without_the_archive(
    folder: Path,
) -> None:
    finish(folder, "read")
    assert study_dates(folder) == [[None], [None]]
    describe_series(folder / "archive", study_date={"A": date(2020, 2, 29)})
    assert summarize_again(folder) == 0
    assert study_dates(folder) == [[date(2020, 2, 29)], [date(2020, 2, 29)]]
    assert '"A",2020-02-29,' in (folder / "run/volumes.csv").read_text()
    (folder / "archive").rename(folder / "moved")
    assert summarize_again(folder) == 0
    assert study_dates(folder) == [[date(2020, 2, 29)], [date(2020, 2, 29)]]
