"""Which reports of an unfinished ingest the next one goes on with."""

from pathlib import Path

from segmodel.archive import manifest
from segmodel.archive.update import ArchiveUpdate
from segmodel.core import schema
from segmodel.storage import store
from tests.support.scans import open_writer, scans, shown, write

NO_REJECTS = schema.REJECTS.empty_table()


def begin(folder: Path, request: str, **flags: bool) -> tuple[ArchiveUpdate, dict[str, bytes]]:
    update = open_writer(folder, **flags).update
    found = update.resume(request)
    update.begin()
    return update, found


def report(folder: Path, update: ArchiveUpdate, part: str, text: str) -> None:
    name = manifest.report_file(update.ingest, part)
    store.publish(store.join(str(folder), manifest.REPORTS, name), text.encode())


def test_the_same_request_goes_on_with_what_was_reported(tmp_path: Path) -> None:
    update, found = begin(tmp_path, "one")
    assert found == {}
    report(tmp_path, update, "00003", "done")
    again, found = begin(tmp_path, "one")
    assert found == {"00003": b"done"}
    assert again.ingest == update.ingest


def test_another_request_begins_anew(tmp_path: Path) -> None:
    update, _ = begin(tmp_path, "one")
    report(tmp_path, update, "00003", "done")
    other, found = begin(tmp_path, "another")
    assert found == {}
    assert other.ingest != update.ingest


def test_an_archive_that_changed_meanwhile_is_another_request(tmp_path: Path) -> None:
    write(tmp_path, scans("A", 1))
    update, _ = begin(tmp_path, "one", add=True)
    report(tmp_path, update, "00000", "done")
    write(tmp_path, scans("B", 1), add=True)
    assert begin(tmp_path, "one", add=True)[1] == {}


def test_reports_go_when_the_ingest_ends(tmp_path: Path) -> None:
    update, _ = begin(tmp_path, "one")
    report(tmp_path, update, "00000", "done")
    update.commit([], NO_REJECTS)
    assert [path.name for path in tmp_path.iterdir()] == ["archive.json"]


def test_a_folder_with_a_file_of_the_user_stays_when_the_ingest_ends(tmp_path: Path) -> None:
    update, _ = begin(tmp_path, "one")
    (tmp_path / manifest.REPORTS / "notes.txt").touch()
    update.commit([], NO_REJECTS)
    assert shown(tmp_path) == ["archive.json", "unfinished/notes.txt"]
