"""Files and folders by URI, local or on S3: listing, reading, publishing, removing.

The file systems are fsspec's (s3fs for `s3://`). Parquet on S3 is read with pyarrow's own client,
which takes half the CPU time.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from segmodel.storage import s3
from segmodel.storage.temporary_file import temporary_file_beside


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `uri` and the path in it; listings are never cached."""
    if "://" not in uri:  # fsspec gives :: in a path a meaning
        local = LocalFileSystem()
        return local, str(local._strip_protocol(uri))
    options = s3.client_options() if uri.startswith("s3") else {}
    fs, path = fsspec.url_to_fs(uri, use_listings_cache=False, **options)
    if is_s3(fs):
        s3.set_retries(fs)
    return fs, path


def is_local(uri: str) -> bool:
    """Whether `uri` is a path of this machine."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def join(uri: str, *names: str) -> str:
    """`uri` with names appended, as a URI."""
    return "/".join([uri.rstrip("/"), *names])


@s3.with_os_errors
def exists(uri: str) -> bool:
    """Whether there is a file or folder at `uri`."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def list_files(uri: str, suffix: str = "") -> list[str]:
    """Names of the files directly in the folder `uri`, sorted, without hidden ones.

    A folder that does not exist has none.
    """
    return sorted(
        entry["name"].rsplit("/", 1)[-1]
        for entry in _entries(uri)
        if entry["type"] == "file" and _is_visible(entry, suffix)
    )


def file_sizes(uri: str, suffix: str = "") -> dict[str, int]:
    """Bytes of each file that `list_files` names."""
    return {
        entry["name"].rsplit("/", 1)[-1]: int(entry["size"])
        for entry in sorted(_entries(uri), key=lambda entry: str(entry["name"]))
        if entry["type"] == "file" and _is_visible(entry, suffix)
    }


def file_versions(uri: str) -> dict[str, str]:
    """A text for each file that `list_files` names; it changes when the file changes.

    It holds the size, and the modification time or, on S3, the ETag.
    """
    return {
        _name(entry): _version(entry)
        for entry in _entries(uri)
        if entry["type"] == "file" and _is_visible(entry, "")
    }


@s3.with_os_errors
def file_version(uri: str) -> str:
    """The text of `file_versions` for one file."""
    fs, path = filesystem(uri)
    return _version(fs.info(path))


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in the folder `uri`, sorted, without hidden ones."""
    return sorted(
        entry["name"].rstrip("/").rsplit("/", 1)[-1]
        for entry in _entries(uri)
        if entry["type"] == "directory" and _is_visible(entry, "")
    )


@s3.with_os_errors
def file_size(uri: str) -> int:
    """Bytes of one file."""
    fs, path = filesystem(uri)
    return int(fs.size(path))


def walk(
    uri: str,
    max_depth: int = 12,
    on_error: Callable[[str, OSError], None] | None = None,
) -> Iterator[tuple[str, int]]:
    """Yield the relative path and size of each file below the folder `uri`, without hidden ones.

    Folders are visited in the order of their names. Links are followed, except those that lead back
    to a folder above them. Pipes, sockets and devices are passed over.

    Args:
        uri: the folder.
        max_depth: folders below this level are not visited.
        on_error: called with a folder's URI and the error if it cannot be listed; by default the
            error is raised.

    Raises:
        OSError: a folder cannot be listed.
    """
    fs, root = filesystem(uri)
    real = str(Path(root).resolve()) if isinstance(fs, LocalFileSystem) else root
    folders: list[tuple[str, tuple[str, ...]]] = [("", (real,))]
    while folders:
        prefix, above = folders.pop()
        folder = join(uri, prefix) if prefix else uri
        try:
            entries = sorted(_entries(folder), key=_name)
        except OSError as error:
            if on_error is None:
                raise
            on_error(folder, error)
            continue
        for entry in entries:
            if not _is_visible(entry, ""):
                continue
            path = f"{prefix}/{_name(entry)}" if prefix else _name(entry)
            if entry["type"] == "file":
                yield path, int(entry.get("size") or 0)
            elif entry["type"] == "directory" and len(above) <= max_depth:
                real = _real_folder(entry, above[-1])
                if not any(f"{one}/".startswith(f"{real}/") for one in above):
                    folders.append((path, (*above, real)))


def _real_folder(entry: dict[str, Any], parent: str) -> str:
    """Where a folder lies once links are followed, if its parent's real place is known."""
    if entry.get("islink"):
        return str(Path(entry["name"]).resolve())
    return f"{parent}/{_name(entry)}"


@s3.with_os_errors
def read_bytes(uri: str) -> bytes:
    """The whole file."""
    fs, path = filesystem(uri)
    return cast(bytes, fs.cat_file(path))


@s3.with_os_errors
def publish(uri: str, content: bytes) -> None:
    """Write a file that appears whole or not at all: rename on a local disk, one upload on S3."""
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, content)
        return
    with temporary_file_beside(Path(path), content) as temporary:
        temporary.replace(path)


def is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is S3."""
    return "s3" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


@s3.with_os_errors
def remove(uri: str) -> None:
    """Delete a file or a whole folder; nothing happens if there is none."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        if fs.exists(path):
            fs.rm(path, recursive=True)
        return
    for name in fs.find(path):  # fs.rm would delete all that matches [ and * in a name
        fs.rm_file(name)


def remove_empty_folder(uri: str) -> None:
    """Delete a local folder if nothing is in it; S3 has no folders."""
    fs, path = filesystem(uri)
    folder = Path(path)
    if isinstance(fs, LocalFileSystem) and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@s3.with_os_errors
def upload_folder(uri: str, local: str) -> None:
    """Copy a local folder and its subfolders to `uri`."""
    fs, path = filesystem(uri)
    fs.put(local.rstrip("/") + "/", path.rstrip("/") + "/", recursive=True)


@s3.with_os_errors
def open_input(uri: str, buffered: bool = True) -> Any:
    """Open a file for reading in binary, with seek; the caller closes it.

    Args:
        uri: of the file.
        buffered: False if the caller has a buffer of its own.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return Path(path).open("rb") if buffered else io.FileIO(path)
    return fs.open(path, "rb")


@s3.with_os_errors
def open_parquet(uri: str) -> pq.ParquetFile:
    """Open a Parquet file: fetches the footer only. Checksums of pages are verified on reading."""
    fs, path = filesystem(uri)
    if is_s3(fs):
        fs = s3.arrow_filesystem(path.split("/")[0])
    return pq.ParquetFile(path, filesystem=fs, pre_buffer=True, page_checksum_verification=True)


def publish_json(uri: str, values: Any) -> None:
    """`publish` a JSON file."""
    publish(uri, (json.dumps(values, indent=2) + "\n").encode())


def publish_table(uri: str, table: pa.Table) -> None:
    """`publish` a table as one Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    publish(uri, sink.getvalue().to_pybytes())


@s3.with_os_errors
def _entries(uri: str) -> list[dict[str, Any]]:
    fs, path = filesystem(uri)
    try:
        entries = cast(list[dict[str, Any]], fs.ls(path, detail=True))
    except FileNotFoundError:
        return []
    # S3 marks an empty folder by an object with the folder's name and a slash, and lists it.
    shown = [
        entry for entry in entries if entry["type"] != "file" or not entry["name"].endswith("/")
    ]
    return [_follow_link(fs, entry) if entry.get("islink") else entry for entry in shown]


def _follow_link(fs: fsspec.AbstractFileSystem, link: dict[str, Any]) -> dict[str, Any]:
    """The entry of a link's target under the link's name; the link itself if it is broken."""
    try:
        return {**fs.info(link["name"]), "name": link["name"]}
    except OSError:
        return {**link, "type": "file"}


def _version(entry: dict[str, Any]) -> str:
    return f"{entry['size']} {entry.get('ETag', entry.get('mtime'))}"


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _is_visible(entry: dict[str, Any], suffix: str) -> bool:
    name = _name(entry)
    return not name.startswith(".") and name.endswith(suffix)
