"""What is a run of ours, and what is somebody else's."""

import json
from pathlib import Path

import pytest

from segmodel.core.errors import ConfigError
from segmodel.storage import store
from segmodel.storage.output_folder import OutputLayout

LAYOUT = OutputLayout(
    run_file="train.json", key="run_id", results=("history.csv", "best/model.json", "masks")
)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return store.join(request.getfixturevalue("s3_bucket"), "output", tmp_path.name)


def put(folder: str, *names: str) -> None:
    for name in names:
        store.publish(store.join(folder, name), b"mine")


def test_a_folder_with_other_files_alone_is_free(folder: str) -> None:
    put(folder, "notes.txt", "best/notes.txt", "history.csv.old")
    assert not LAYOUT.holds_run(folder)


@pytest.mark.parametrize("name", ["history.csv", "best/model.json", "masks/a.parquet"])
def test_a_file_that_the_job_would_replace_is_named(folder: str, name: str) -> None:
    put(folder, name)
    shown = name.removesuffix("/a.parquet")
    with pytest.raises(
        ConfigError, match=f"{folder} holds {shown} but no train.json: this job did"
    ):
        LAYOUT.holds_run(folder)


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"images": []}', b'{"run_id": 1}\n{}'])
def test_a_file_that_has_only_the_name_of_a_run_file_does_not_make_a_run(
    folder: str, content: bytes
) -> None:
    store.publish(store.join(folder, "train.json"), content)
    with pytest.raises(ConfigError, match=r"train\.json is damaged or was not written by this job"):
        LAYOUT.holds_run(folder)


def test_of_a_run_only_its_results_are_removed(folder: str) -> None:
    put(folder, "history.csv", "best/model.json", "best/notes.txt", "masks/a.parquet", "notes.txt")
    store.publish(store.join(folder, "train.json"), json.dumps({"run_id": "1"}).encode())
    assert LAYOUT.holds_run(folder)
    LAYOUT.remove_results(folder)
    assert store.list_files(folder) == ["notes.txt", "train.json"]
    assert store.list_folders(folder) == ["best"]
    assert store.list_files(store.join(folder, "best")) == ["notes.txt"]
    LAYOUT.remove_run(folder)
    assert store.list_files(folder) == ["notes.txt"]
