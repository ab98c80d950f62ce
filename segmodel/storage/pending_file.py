"""A file that is written piece by piece and published as a whole."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from segmodel.storage import s3, store

UNFINISHED = ".unfinished"
"""Ending of a local file's name until it is published."""


class PendingFile:
    """A file that appears only with `publish`.

    On a local disk it grows under a name with the ending `UNFINISHED`, on S3 as a multipart upload.

    Args:
        uri: the file; folders above it are made.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._local: Path | None = None
        self.sink = self._open()
        """Binary, to write to."""

    def publish(self) -> None:
        """Make the file appear, whole."""
        _publish(self.uri, self.sink, self._local)

    def discard(self) -> None:
        """Remove what was written; nothing happens after `publish`."""
        if self._local:
            with suppress(OSError):  # what is still buffered may not fit on a full disk
                self.sink.close()
            _unfinished(self._local).unlink(missing_ok=True)
        elif not self.sink.closed:
            self.sink.discard()
            self.sink.closed = True  # otherwise fsspec would try to upload the rest

    def _open(self) -> Any:
        fs, path = store.filesystem(self.uri)
        if not isinstance(fs, LocalFileSystem):
            return fs.open(path, "wb", autocommit=False)
        self._local = Path(path)
        self._local.parent.mkdir(parents=True, exist_ok=True)
        return _unfinished(self._local).open("wb")


@s3.with_os_errors
def _publish(uri: str, sink: Any, local: Path | None) -> None:
    if local is None:
        sink.close()
        sink.commit()
        return
    sink.flush()
    os.fsync(sink.fileno())
    sink.close()
    _unfinished(local).replace(local)


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + UNFINISHED)
