import errno
import os
from pathlib import Path

import boto3
import pyarrow as pa
import pytest

from segmodel.storage import store


def names(folder: Path) -> list[str]:
    """Everything in the folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_a_published_file_is_there_whole_and_alone(tmp_path: Path) -> None:
    store.publish(f"{tmp_path}/new/run.json", b"whole")
    assert (tmp_path / "new/run.json").read_bytes() == b"whole"
    assert names(tmp_path / "new") == ["run.json"]


def test_publishing_again_replaces_the_whole_file(tmp_path: Path) -> None:
    store.publish(f"{tmp_path}/run.json", b"a long first version")
    store.publish(f"{tmp_path}/run.json", b"short")
    assert (tmp_path / "run.json").read_bytes() == b"short"
    assert names(tmp_path) == ["run.json"]


def test_a_publish_that_breaks_off_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(f"{tmp_path}/run.json", b"old")

    def disk_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match=f"no space left on device: '{tmp_path}/run.json'"):
        store.publish(f"{tmp_path}/run.json", b"new")
    assert (tmp_path / "run.json").read_bytes() == b"old"
    assert names(tmp_path) == ["run.json"]


def test_a_published_file_can_be_read_by_whoever_may_read_other_new_files(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    store.publish(f"{tmp_path}/published", b"")
    assert (tmp_path / "published").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_listings_are_sorted_and_leave_out_hidden_names_and_the_other_kind(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", ".a.parquet.tmp", ".hidden.parquet", "run.json"):
        (tmp_path / name).write_bytes(b"")
    for name in ("masks", "best", ".cache", "folder.parquet"):
        (tmp_path / name).mkdir()
    assert store.list_files(str(tmp_path)) == ["a.parquet", "b.parquet", "run.json"]
    assert store.list_files(f"{tmp_path}/", ".parquet") == ["a.parquet", "b.parquet"]
    assert store.list_folders(str(tmp_path)) == ["best", "folder.parquet", "masks"]


def test_a_folder_that_is_not_there_lists_as_empty(tmp_path: Path) -> None:
    assert store.list_files(f"{tmp_path}/missing") == []
    assert store.list_folders(f"{tmp_path}/missing") == []
    assert not store.exists(f"{tmp_path}/missing")


def test_a_listing_sees_what_was_written_after_the_last_one(tmp_path: Path) -> None:
    assert store.list_files("memory://listing") == []
    store.publish("memory://listing/a", b"1")
    assert store.list_files("memory://listing") == ["a"]
    store.remove("memory://listing")
    assert store.list_files("memory://listing") == []


def test_join_puts_one_slash_between_names() -> None:
    assert store.join("s3://mri/runs/", "tonight", "run.json") == "s3://mri/runs/tonight/run.json"


def test_remove_takes_files_and_folders_and_minds_no_missing_one(tmp_path: Path) -> None:
    (tmp_path / "masks/deep").mkdir(parents=True)
    (tmp_path / "masks/deep/a").write_bytes(b"")
    (tmp_path / "run.json").write_bytes(b"")
    for name in ("masks", "run.json", "missing"):
        store.remove(f"{tmp_path}/{name}")
    assert names(tmp_path) == []


def test_remove_takes_a_name_for_a_name_and_for_no_pattern(anywhere: str) -> None:
    for name in ("night[12]/a", "night1/a", "x*/a", "xy/a"):
        store.publish(store.join(anywhere, name), b"")
    store.remove(store.join(anywhere, "night[12]"))
    store.remove(store.join(anywhere, "x*/a"))
    left = [
        name
        for name in ("night[12]/a", "night1/a", "x*/a", "xy/a")
        if store.exists(store.join(anywhere, name))
    ]
    assert left == ["night1/a", "xy/a"]


def test_an_uploaded_folder_brings_its_files_and_those_of_its_folders(tmp_path: Path) -> None:
    (tmp_path / "local/deep").mkdir(parents=True)
    (tmp_path / "local/a").write_bytes(b"1")
    (tmp_path / "local/deep/b").write_bytes(b"2")
    store.upload_folder(f"{tmp_path}/remote", f"{tmp_path}/local")
    assert store.read_bytes(f"{tmp_path}/remote/a") == b"1"
    assert store.read_bytes(f"{tmp_path}/remote/deep/b") == b"2"


def test_a_published_table_comes_back_as_it_was(tmp_path: Path) -> None:
    table = pa.table(
        {"slice_id": ["A_1", None], "mask": pa.array([b"\x00\xff", None], pa.binary())}
    )
    store.publish_table(f"{tmp_path}/masks/shard.parquet", table)
    with store.open_parquet(f"{tmp_path}/masks/shard.parquet") as file:
        assert file.read().equals(table)
    assert names(tmp_path / "masks") == ["shard.parquet"]


def test_only_paths_of_this_machine_are_local(tmp_path: Path) -> None:
    assert store.is_local(str(tmp_path))
    assert not store.is_local("memory://archive")


def test_the_object_that_stands_for_an_empty_folder_is_no_file_of_it(s3_bucket: str) -> None:
    folder = store.join(s3_bucket, "marked")
    boto3.client("s3").put_object(Bucket="mri", Key="marked/")
    store.publish(store.join(folder, "a"), b"")
    assert store.list_files(folder) == ["a"]
    assert store.file_sizes(folder) == {"a": 0}


def test_sizes_are_those_of_the_listed_files(anywhere: str) -> None:
    for name, content in (("b.parquet", b"12"), ("a.parquet", b"1"), ("run.json", b"123")):
        store.publish(store.join(anywhere, name), content)
    assert store.file_sizes(anywhere, ".parquet") == {"a.parquet": 1, "b.parquet": 2}
    assert store.file_sizes(store.join(anywhere, "missing")) == {}


def test_a_flipped_bit_in_a_published_table_is_noticed(tmp_path: Path) -> None:
    store.publish_table(f"{tmp_path}/t.parquet", pa.table({"mask": [os.urandom(1000)]}))
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[500] ^= 1
    (tmp_path / "t.parquet").write_bytes(bytes(content))
    with (
        store.open_parquet(f"{tmp_path}/t.parquet") as file,
        pytest.raises(OSError, match="checksum"),
    ):
        file.read()


def test_links_that_lead_back_up_or_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scan").write_text(name)
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "itself").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b" / "back").symlink_to(tmp_path / "a", target_is_directory=True)
    found = [path for path, _ in store.walk(str(tmp_path))]
    assert found == ["b/scan", "b/back/scan", "a/scan", "a/other/scan"]


def test_pipes_are_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "scan").write_text("")
    assert [path for path, _ in store.walk(str(tmp_path))] == ["scan"]
