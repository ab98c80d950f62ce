"""Files and folders of a source that cannot be read or listed."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from segmodel.core.errors import SourceError
from segmodel.sources.base import RejectError
from segmodel.storage import store

_LASTING = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
)
"""Errors that a disk gives at every attempt."""


@contextmanager
def reject_lasting_errors(uri: str) -> Iterator[None]:
    """Raise `RejectError` in place of an error that this file or folder will give every time."""
    try:
        yield
    except OSError as error:
        # On S3 expired credentials give such errors too: those concern every file.
        lasting = error.errno in _LASTING and store.is_local(uri)
        if not lasting and not isinstance(error, FileNotFoundError):
            raise
        raise RejectError(f"cannot be read: {error.strerror}") from None


def as_text(name: str) -> str:
    """The name with escapes in place of bytes that are not UTF-8 (lone surrogates in Python)."""
    return name.encode(errors="backslashreplace").decode()


def list_source(uri: str) -> tuple[list[str], list[dict[str, Any]]]:
    """All files below the folder of a source.

    Args:
        uri: the folder.

    Returns:
        Their paths below it, and rows of `schema.REJECTS` for folders that cannot be listed and for
        names that are not UTF-8.

    Raises:
        SourceError: there is no such folder, or it cannot be listed.
        OSError: the store gives no answer.
    """
    if not store.exists(uri):
        raise SourceError(f"{uri}: no such folder")
    problems: list[dict[str, Any]] = []

    def leave_out(path: str, reason: str) -> None:
        problems.append({"source_uri": as_text(path), "stage": "listing", "reason": reason})

    def on_error(folder: str, error: OSError) -> None:
        try:
            with reject_lasting_errors(folder):
                raise error
        except RejectError as reject:
            if folder == uri:
                raise SourceError(f"{uri}: {reject}") from None
            leave_out(folder, str(reject))

    paths = []
    for path, _ in store.walk(uri, on_error=on_error):
        if as_text(path) == path:
            paths.append(path)
        else:
            leave_out(store.join(uri, path), "its name is not UTF-8")
    return paths, problems
