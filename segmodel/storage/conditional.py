"""Conditional writes: of several processes that change one file, one succeeds.

On a local disk a hard link that fails where the file exists, and a lock (flock) around each change;
on S3 conditional PUTs (If-None-Match, If-Match).
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from segmodel.storage import s3, store
from segmodel.storage.temporary_file import temporary_file_beside

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems without hard links: shares of Windows, file systems in user space."""


@s3.with_os_errors
def create(uri: str, content: bytes) -> None:
    """Write a file that must not exist yet, whole or not at all.

    An object store that ignores conditions overwrites the file: read back what matters.

    Raises:
        FileExistsError: it exists.
    """
    fs, path = store.filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        try:
            fs.pipe_file(path, content, mode="create")
        except OSError as error:
            _raise_if_condition_failed(uri, error)
            raise
        return
    with temporary_file_beside(Path(path), content) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # One succeeds, but another may see the file before it has content.
            with open(path, "xb") as file:
                file.write(content)


@s3.with_os_errors
def read_version(uri: str) -> tuple[bytes, str]:
    """The whole file, and its version for `replace`.

    Raises:
        FileNotFoundError: there is none.
    """
    fs, path = store.filesystem(uri)
    # The version first: if the file changes in between, `replace` refuses the older version.
    version = "" if isinstance(fs, LocalFileSystem) else str(fs.info(path).get("ETag", ""))
    content = cast(bytes, fs.cat_file(path))
    return content, version or content.hex()


@s3.with_os_errors
def replace(uri: str, content: bytes, version: str) -> None:
    """Publish a file in place of one version of it and of no other.

    Raises:
        FileExistsError: the file has changed.
        FileNotFoundError: it is gone.
    """
    fs, path = store.filesystem(uri)
    if store.is_s3(fs):
        try:
            fs.pipe_file(path, content, IfMatch=version)
        except OSError as error:
            _raise_if_condition_failed(uri, error)
            raise
        return
    with _locked(fs, path):
        if read_version(uri)[1] != version:
            raise FileExistsError(errno.EEXIST, "the file has changed", uri)
        store.publish(uri, content)


@s3.with_os_errors
def remove_version(uri: str, version: str) -> None:
    """Delete one version of a file and no other.

    On S3 the file may change between the check and the deletion.

    Raises:
        FileExistsError: the file has changed.
        FileNotFoundError: it is gone.
    """
    fs, path = store.filesystem(uri)
    with _locked(fs, path):
        if read_version(uri)[1] != version:
            raise FileExistsError(errno.EEXIST, "the file has changed", uri)
        fs.rm_file(path)


@contextmanager
def _locked(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[None]:
    """Keep other processes from changing the local file `path`; does nothing on S3."""
    if not isinstance(fs, LocalFileSystem):
        yield
        return
    target = Path(path)
    with open(target.parent / f".{target.name}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _raise_if_condition_failed(uri: str, error: OSError) -> None:
    # s3fs raises FileExistsError only where the server names the condition, otherwise EINVAL.
    response = getattr(error.__cause__, "response", None) or {}
    codes = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
    if response.get("Error", {}).get("Code") in codes:
        raise FileExistsError(errno.EEXIST, "the file has changed", uri) from error
