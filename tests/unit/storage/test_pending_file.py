"""Files that are published as a whole, on a local disk and on S3."""

from pathlib import Path

import pytest

from segmodel.storage import store
from segmodel.storage.pending_file import PendingFile


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "new")
    bucket = request.getfixturevalue("s3_bucket")
    return f"{bucket}/{tmp_path.name}"


@pytest.mark.parametrize("size", [0, 10, 6 * 2**20])
def test_a_file_is_there_once_it_is_published(folder: str, size: int) -> None:
    uri = f"{folder}/data"
    file = PendingFile(uri)
    file.sink.write(bytes(size))
    assert not store.exists(uri)
    file.publish()
    assert store.read_bytes(uri) == bytes(size)
    assert store.list_files(folder) == ["data"]


def test_of_a_file_that_is_discarded_nothing_stays(folder: str) -> None:
    file = PendingFile(f"{folder}/data")
    file.sink.write(bytes(10))
    file.discard()
    del file
    assert store.list_files(folder) == []
