"""What is done and what is to do, without Ray: masks files are made by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmodel.archive import slice_file
from segmodel.archive import writer as archive_writer
from segmodel.archive.reader import Archive, Shard
from segmodel.core import schema
from segmodel.core.errors import (
    ConfigError,
    FingerprintError,
    RequestError,
    SegmentationError,
)
from segmodel.runs import run_file, run_folder
from segmodel.runs.run_file import UNDECIDED, Fingerprint, Run
from segmodel.runs.run_folder import Work
from segmodel.storage import store
from tests.support.scans import scans, truncate, write
from tests.support.segmented import WANTED

FIRST, SECOND = (f"slices-000000000001-{number:05d}.parquet" for number in range(2))
ADDED = "slices-000000000002-00000.parquet"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered_ingests: None) -> Path:
    """An archive of two files: A with 2 slices, B with 3; the run is beside it."""
    monkeypatch.setattr(archive_writer, "FILE_SLICES", 1)
    monkeypatch.setattr(slice_file, "ROW_GROUP_SLICES", 1)
    write(tmp_path / "archive", scans("A", 2), scans("B", 3))
    return tmp_path


def begin(folder: Path, *, retry: bool = False, wanted: Fingerprint = WANTED) -> tuple[Work, Run]:
    """What a call of the job does before its shards."""
    archive, output = Archive(str(folder / "archive"), skip_damaged=True), str(folder / "run")
    run = run_folder.claim(output, wanted, archive, {})
    work = run_folder.find_work(output, archive, 512, retry)
    return work, run_folder.begin(output, run, archive, work)


def do(folder: Path, work: Work, failing: tuple[str, ...] = (), stage: str = "read") -> None:
    """What the actors do: quarantine, then masks."""
    for shard in work.todo:
        quarantine, masks = (
            folder / "run" / name / shard.output_file for name in ("quarantine", "masks")
        )
        if shard.file in failing:
            rows = [
                {"slice_id": "x", "stage": each, "reason": "it failed"} for each in ("blank", stage)
            ]
            store.publish_table(
                str(quarantine), pa.Table.from_pylist(rows, schema=schema.QUARANTINE)
            )
        else:
            store.remove(str(quarantine))
        store.publish_table(str(masks), schema.MASKS.empty_table())


def files(shards: list[Shard]) -> list[str]:
    return [shard.file for shard in shards]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_nothing_is_written_before_the_run_begins(folder: Path) -> None:
    archive = Archive(str(folder / "archive"))
    run_folder.claim(str(folder / "run"), WANTED, archive, {})
    run_folder.find_work(str(folder / "run"), archive, 512, retry_failed=True)
    assert not (folder / "run").exists()


def test_the_run_records_slices_and_bytes_of_each_file(folder: Path) -> None:
    begin(folder)
    run = json.loads((folder / "run/run.json").read_text())
    assert run["files"] == {
        name: {"slices": slices, "bytes": (folder / "archive" / name).stat().st_size}
        for name, slices in ((FIRST, 2), (SECOND, 3))
    }


def test_of_a_grown_archive_only_the_new_shards_are_done(folder: Path) -> None:
    work, _ = begin(folder)
    do(folder, work)
    write(folder / "archive", scans("C", 4), add=True)
    work, run = begin(folder)
    assert (files(work.todo), [shard.slices for shard in work.todo]) == (
        [ADDED],
        [4],
    )
    assert sorted(run.files) == [FIRST, SECOND, ADDED]
    do(folder, work)
    assert begin(folder)[0].todo == []


def test_a_known_file_that_changed_is_refused_by_name(folder: Path) -> None:
    begin(folder)
    size = (folder / "archive" / SECOND).stat().st_size
    table = pq.read_table(folder / "archive" / SECOND)
    pq.write_table(table, folder / "archive" / SECOND, compression="none")
    with pytest.raises(
        FingerprintError,
        match=f"another .*{SECOND}: it had 3 slices in {size} bytes, has now 3 slices in ",
    ):
        begin(folder)


@pytest.mark.parametrize(
    ("damage", "why"),
    [(Path.unlink, "there is no such file"), (truncate, "not a readable Parquet file")],
)
def test_a_known_file_that_vanished_or_broke_is_refused_by_name(
    folder: Path, damage, why: str
) -> None:
    begin(folder)
    damage(folder / "archive" / SECOND)
    with pytest.raises(
        FingerprintError, match=f"{SECOND}: it was readable, is not any more: .*{why}"
    ):
        begin(folder)


def test_another_setting_is_refused_and_named(folder: Path) -> None:
    begin(folder)
    with pytest.raises(FingerprintError, match=r"threshold was 0\.5, is now 0\.7"):
        begin(folder, wanted=replace(WANTED, threshold=0.7))


def test_each_slice_of_a_file_that_cannot_be_opened_is_a_row_in_quarantine(folder: Path) -> None:
    truncate(folder / "archive" / SECOND)
    work, _ = begin(folder)
    do(folder, work)
    rows = pq.read_table(folder / "run/quarantine" / SECOND).to_pylist()
    assert [(row["slice_id"], row["patient_id"], row["stage"]) for row in rows] == [
        (None, None, "open")
    ] * 3
    assert all(f"{SECOND}: not a readable Parquet file" in row["reason"] for row in rows)
    archive = Archive(str(folder / "archive"), skip_damaged=True)
    assert run_folder.count_quarantined(str(folder / "run"), archive, work.plan) == {"open": 3}
    work, run = begin(folder)
    assert (work.todo, work.newly_lost, list(run.files)) == ([], [], [FIRST])


def test_a_file_that_can_be_opened_again_leaves_quarantine_and_is_done(folder: Path) -> None:
    whole = (folder / "archive" / SECOND).read_bytes()
    truncate(folder / "archive" / SECOND)
    do(folder, begin(folder)[0])
    (folder / "archive" / SECOND).write_bytes(whole)
    work, _ = begin(folder)
    assert (files(work.todo), work.reopened, names(folder / "run/quarantine")) == (
        [SECOND],
        [SECOND],
        [],
    )


def test_failed_shards_are_retried_only_when_asked_and_a_good_one_leaves_quarantine(
    folder: Path,
) -> None:
    do(folder, begin(folder)[0], failing=(SECOND,))
    assert begin(folder)[0].todo == []
    work, _ = begin(folder, retry=True)
    assert files(work.todo) == files(work.retried) == [SECOND]
    do(folder, work)
    assert names(folder / "run/quarantine") == []
    assert begin(folder, retry=True)[0].todo == []


@pytest.mark.parametrize("where", ["masks", "quarantine"])
def test_a_file_that_is_no_shard_s_is_refused_by_name(folder: Path, where: str) -> None:
    work, _ = begin(folder)
    do(folder, work, failing=(FIRST,))
    (copied, *_) = names(folder / "run" / where)
    (folder / "run" / where / copied).rename(folder / "run" / where / "copy.parquet")
    with pytest.raises(
        FingerprintError, match=f"{where} holds copy.parquet, which is not a shard of this run"
    ):
        begin(folder)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"finished": null}', b'{"fingerprint": {}}', b'{"fingerprint": 1}']
)
def test_a_damaged_run_file_is_refused_by_name(folder: Path, content: bytes) -> None:
    begin(folder)
    (folder / "run/run.json").write_bytes(content)
    with pytest.raises(RequestError, match=r"run\.json is damaged .*another --output"):
        begin(folder)


@pytest.mark.parametrize(
    "name", ["volumes.csv", "series.parquet", "report.html", "masks", "postprocessed"]
)
def test_a_segmentation_does_not_replace_a_user_s_own_file(folder: Path, name: str) -> None:
    (folder / "run").mkdir()
    (folder / "run" / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds {name} but no run.json: this job did not write"):
        begin(folder)
    assert names(folder / "run") == [name]


def test_a_damaged_quarantine_file_is_named_with_what_to_do(folder: Path) -> None:
    do(folder, begin(folder)[0], failing=(SECOND,))
    (damaged,) = (folder / "run/quarantine").iterdir()
    truncate(damaged)
    with pytest.raises(
        SegmentationError,
        match=f"{damaged.name} cannot be read .*delete the files of that name in masks/ and",
    ):
        begin(folder, retry=True)
    for name in ("masks", "quarantine"):
        (folder / "run" / name / damaged.name).unlink()
    assert files(begin(folder)[0].todo) == [SECOND]


def test_shards_with_blank_slices_alone_are_not_done_again(folder: Path) -> None:
    """Nearly every shard of skull-stripped scans has some; all would be segmented again."""
    do(folder, begin(folder)[0], failing=(SECOND,), stage="blank")
    assert begin(folder, retry=True)[0].todo == []


def test_a_retry_that_breaks_off_is_finished_by_any_later_call(
    folder: Path,
) -> None:
    do(folder, begin(folder)[0], failing=(SECOND,))
    work, _ = begin(folder, retry=True)  # and killed here
    assert names(folder / "run/masks") == [
        shard.output_file for shard in work.plan if shard.file == FIRST
    ]
    assert names(folder / "run/quarantine") == [
        shard.output_file for shard in work.plan if shard.file == SECOND
    ]
    again, _ = begin(folder)
    assert files(again.todo) == [SECOND]


def test_a_finished_run_is_not_finished_any_more_once_it_goes_on(folder: Path) -> None:
    work, run = begin(folder)
    do(folder, work)
    run_file.write(str(folder / "run"), replace(run, finished=run_file.now()))
    write(folder / "archive", scans("C", 1), add=True)
    begin(folder)
    assert json.loads((folder / "run/run.json").read_text())["finished"] is None


def test_an_undecided_precision_goes_with_that_of_the_run_and_another_is_refused(
    folder: Path,
) -> None:
    begin(folder)  # in fp32
    _, run = begin(folder, wanted=replace(WANTED, precision=UNDECIDED))
    assert run.fingerprint.precision == "fp32"
    with pytest.raises(FingerprintError, match="precision was fp32, is now bf16"):
        begin(folder, wanted=replace(WANTED, precision="bf16"))


def test_shards_whose_masks_are_not_in_the_folder_are_found(folder: Path) -> None:
    work, _ = begin(folder)
    do(folder, work)
    assert run_folder.find_unpublished(str(folder / "run"), work.plan) == []
    first, second = work.plan
    (folder / "run/masks" / first.output_file).unlink()
    assert run_folder.find_unpublished(str(folder / "run"), [first, second]) == [first]
