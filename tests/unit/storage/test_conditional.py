"""Of several processes that change one file, one succeeds."""

import errno
import os
from pathlib import Path

import pytest

from segmodel.storage import conditional, store


def names(folder: Path) -> list[str]:
    """Everything in the folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_created_once(anywhere: str) -> None:
    uri = store.join(anywhere, "lease.json")
    conditional.create(uri, b"first")
    with pytest.raises(FileExistsError):
        conditional.create(uri, b"second")
    assert store.read_bytes(uri) == b"first"
    assert store.list_files(anywhere) == ["lease.json"]


def test_a_file_is_created_once_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    conditional.create(str(tmp_path / "lease.json"), b"mine")
    with pytest.raises(FileExistsError):
        conditional.create(str(tmp_path / "lease.json"), b"yours")
    assert (tmp_path / "lease.json").read_bytes() == b"mine"
    assert names(tmp_path) == ["lease.json"]


def test_a_version_is_replaced_or_removed_once(anywhere: str) -> None:
    uri = store.join(anywhere, "lease.json")
    conditional.create(uri, b"first")
    content, version = conditional.read_version(uri)
    conditional.replace(uri, b"second", version)
    with pytest.raises(FileExistsError):
        conditional.replace(uri, b"third", version)
    with pytest.raises(FileExistsError):
        conditional.remove_version(uri, version)
    assert (content, store.read_bytes(uri)) == (b"first", b"second")
    conditional.remove_version(uri, conditional.read_version(uri)[1])
    assert not store.exists(uri)
    with pytest.raises(FileNotFoundError):
        conditional.replace(uri, b"fourth", version)
    with pytest.raises(FileNotFoundError):
        conditional.read_version(uri)
