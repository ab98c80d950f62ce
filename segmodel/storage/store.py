"""One way to a file, wherever it lies: a URI becomes a file system and a path in it.

That is fsspec's (s3fs for `s3://`), but where Parquet is read from S3: pyarrow's own client takes half the CPU time a gigabyte.
"""

import csv
import errno
import fcntl
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from segmodel.core.rounding import rounded
from segmodel.storage import s3


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `uri` and the path in it; a listing is never answered from a cache."""
    if "://" not in uri:  # fsspec would take :: in a path for two file systems, one in the other
        local = LocalFileSystem()
        return local, str(local._strip_protocol(uri))
    options = s3.client_options() if uri.startswith("s3") else {}
    fs, path = fsspec.url_to_fs(uri, use_listings_cache=False, **options)
    if _is_s3(fs):
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
    """Names of the files directly in the folder `uri`, sorted; hidden ones left out; [] if there is no such folder."""
    return sorted(
        entry["name"].rsplit("/", 1)[-1]
        for entry in _entries(uri)
        if entry["type"] == "file" and _shown(entry, suffix)
    )


def file_sizes(uri: str, suffix: str = "") -> dict[str, int]:
    """Bytes of each file that `list_files` names."""
    return {
        entry["name"].rsplit("/", 1)[-1]: int(entry["size"])
        for entry in sorted(_entries(uri), key=lambda entry: str(entry["name"]))
        if entry["type"] == "file" and _shown(entry, suffix)
    }


def file_versions(uri: str) -> dict[str, str]:
    """A mark of each file that `list_files` names: as long as it stays the same, so does the file.

    It is made of the file's size and of its time; on S3, which hashes files, of the ETag.
    """
    return {
        _name(entry): _mark(entry)
        for entry in _entries(uri)
        if entry["type"] == "file" and _shown(entry, "")
    }


@s3.with_os_errors
def file_version(uri: str) -> str:
    """The mark of one file; see `file_versions`."""
    fs, path = filesystem(uri)
    return _mark(fs.info(path))


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in the folder `uri`, sorted; hidden ones left out."""
    return sorted(
        entry["name"].rstrip("/").rsplit("/", 1)[-1]
        for entry in _entries(uri)
        if entry["type"] == "directory" and _shown(entry, "")
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
    """Every file below the folder `uri`, hidden ones left out: its path in the folder, and its bytes.

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
            if not _shown(entry, ""):
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
    """Write a file so that it is there whole or not at all: rename on a local disk, one upload elsewhere."""
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, content)
        return
    with _written_beside(Path(path), content) as temporary:
        temporary.replace(path)


@s3.with_os_errors
def create(uri: str, content: bytes) -> None:
    """Write a file that must not be there yet, whole or not at all: of several callers one succeeds.

    A hard link on a local disk that has them, a conditional PUT (If-None-Match) on S3. An object store that does not know
    conditions overwrites instead: read back what matters.

    Raises:
        FileExistsError: it is there.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        try:
            fs.pipe_file(path, content, mode="create")
        except OSError as error:
            _raise_if_condition_failed(uri, error)
            raise
        return
    with _written_beside(Path(path), content) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            with open(
                path, "xb"
            ) as file:  # one succeeds; another may see it before its content is there
                file.write(content)


@s3.with_os_errors
def read_version(uri: str) -> tuple[bytes, str]:
    """The whole file, and a mark of its version for `replace`.

    Raises:
        FileNotFoundError: there is none.
    """
    fs, path = filesystem(uri)
    # The mark first: if the file changes in between, the mark is the older one, and `replace` refuses it.
    version = "" if isinstance(fs, LocalFileSystem) else str(fs.info(path).get("ETag", ""))
    content = cast(bytes, fs.cat_file(path))
    return content, version or content.hex()


@s3.with_os_errors
def replace(uri: str, content: bytes, version: str) -> None:
    """`publish` in place of one version of a file and of no other.

    On a local disk under a lock (flock) that all callers of this function take, on S3 a conditional PUT (If-Match).

    Raises:
        FileExistsError: the file has another version by now.
        FileNotFoundError: it is gone.
    """
    fs, path = filesystem(uri)
    if _is_s3(fs):
        try:
            fs.pipe_file(path, content, IfMatch=version)
        except OSError as error:
            _raise_if_condition_failed(uri, error)
            raise
        return
    with _locked(fs, path):
        if read_version(uri)[1] != version:
            raise FileExistsError(errno.EEXIST, "another version is there by now", uri)
        publish(uri, content)


@s3.with_os_errors
def remove_version(uri: str, version: str) -> None:
    """Delete one version of a file and no other; on S3 there is a moment between the look and the deletion.

    Raises:
        FileExistsError: the file has another version by now.
        FileNotFoundError: it is gone.
    """
    fs, path = filesystem(uri)
    with _locked(fs, path):
        if read_version(uri)[1] != version:
            raise FileExistsError(errno.EEXIST, "another version is there by now", uri)
        fs.rm_file(path)


@contextmanager
def _written_beside(target: Path, content: bytes) -> Iterator[Path]:
    """A hidden file beside `target` with its content, on the disk; deleted at the end if it is still there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # such as that of a full disk, which names no file
            error.filename = str(target)
            raise
        Path(temporary).chmod(0o666 & ~_UMASK)  # mkstemp keeps a file to its owner alone
        yield Path(temporary)
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def _locked(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[None]:
    """Alone among the processes that change the local file `path`; elsewhere nothing is locked."""
    if not isinstance(fs, LocalFileSystem):
        yield
        return
    target = Path(path)
    with open(target.parent / f".{target.name}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    return "s3" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def _raise_if_condition_failed(uri: str, error: OSError) -> None:
    # s3fs makes FileExistsError of a failed If-None-Match where the server names the condition, and EINVAL of the rest.
    response = getattr(error.__cause__, "response", None) or {}
    if response.get("Error", {}).get("Code") in (
        "PreconditionFailed",
        "ConditionalRequestConflict",
        "412",
        "409",
    ):
        raise FileExistsError(errno.EEXIST, "another version is there by now", uri) from error


@s3.with_os_errors
def remove(uri: str) -> None:
    """Delete a file or a whole folder; nothing happens if there is none."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        if fs.exists(path):
            fs.rm(path, recursive=True)
        return
    for name in fs.find(
        path
    ):  # fs.rm would take [ and * in a name for a pattern, and delete what matches it
        fs.rm_file(name)


@s3.with_os_errors
def upload_folder(uri: str, local: str) -> None:
    """Copy a local folder, with what lies in its folders, to `uri`."""
    fs, path = filesystem(uri)
    fs.put(local.rstrip("/") + "/", path.rstrip("/") + "/", recursive=True)


@s3.with_os_errors
def open_input(uri: str) -> Any:
    """A binary file to read piece by piece, with seek; close it."""
    fs, path = filesystem(uri)
    return fs.open(path, "rb")


@s3.with_os_errors
def open_parquet(uri: str) -> pq.ParquetFile:
    """A Parquet file to read; only its footer is fetched now. Pages that carry a checksum are checked against it."""
    fs, path = filesystem(uri)
    if _is_s3(fs):
        fs = s3.arrow_filesystem(path.split("/")[0])
    return pq.ParquetFile(path, filesystem=fs, pre_buffer=True, page_checksum_verification=True)


def publish_json(uri: str, values: Any) -> None:
    """`publish` JSON for people and programs."""
    publish(uri, (json.dumps(values, indent=2) + "\n").encode())


def publish_csv(
    uri: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """`publish` rows as CSV.

    Args:
        uri: of the file.
        rows: at least one, unless `columns` are given.
        columns: the header; by default the keys of the first row.
    """
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(rows[0]) if columns is None else columns, lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    publish(uri, text.getvalue().encode())


def publish_csv_table(uri: str, table: pa.Table) -> None:
    """`publish` an Arrow table as CSV for people; numbers are rounded, nulls become empty cells."""
    columns = [_for_people(name, table[name]) for name in table.column_names]
    text = io.BytesIO()
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    pyarrow.csv.write_csv(pa.table(columns, names=table.column_names), text, options)
    publish(uri, text.getvalue())


def read_csv(uri: str) -> list[dict[str, str]]:
    """The rows of a CSV file of `publish_csv`, as texts."""
    rows = csv.DictReader(io.StringIO(read_bytes(uri).decode(), newline=""))
    return [{name: _as_it_was(value) for name, value in row.items()} for row in rows]


_FORMULA_START = "^([=+@\\-\t\r'])"
"""A text that begins so is a formula to a spreadsheet; a quote before it makes it text."""


def _harmless(value: object) -> object:
    if not isinstance(value, str):
        return value
    return re.sub(_FORMULA_START, r"'\1", value).replace("\r", " ")  # which would end the row


def _for_people(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    if _is_text(column.type):
        return pa.array([_harmless(text) for text in column.to_pylist()], pa.large_string())
    if pa.types.is_float64(column.type):
        values = column.to_pylist()
        return pa.array([v if v is None else rounded(name, v) for v in values], pa.float64())
    return column


def _is_text(kind: pa.DataType) -> bool:
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(values) or pa.types.is_large_string(values))


def _as_it_was(text: str) -> str:
    return text[1:] if re.match("^'[=+@\\-\t\r']", text) else text


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
    # On S3 an empty object with the folder's name and a slash stands for an empty folder, and is listed in it.
    shown = [
        entry for entry in entries if entry["type"] != "file" or not entry["name"].endswith("/")
    ]
    return [_followed(fs, entry) if entry.get("islink") else entry for entry in shown]


def _followed(fs: fsspec.AbstractFileSystem, link: dict[str, Any]) -> dict[str, Any]:
    """What a symbolic link leads to, under its own name; one that leads nowhere is a file that is not there."""
    try:
        return {**fs.info(link["name"]), "name": link["name"]}
    except OSError:
        return {**link, "type": "file"}


def _mark(entry: dict[str, Any]) -> str:
    return f"{entry['size']} {entry.get('ETag', entry.get('mtime'))}"


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _shown(entry: dict[str, Any], suffix: str) -> bool:
    name = _name(entry)
    return not name.startswith(".") and name.endswith(suffix)


_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What shares of Windows and file systems of user space answer."""


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


_UMASK = _read_umask()
