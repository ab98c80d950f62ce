"""Hidden files on a local disk that are complete before they get the name of their target."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


_UMASK = _read_umask()


@contextmanager
def temporary_file_beside(target: Path, content: bytes) -> Iterator[Path]:
    """Write a hidden file beside `target`; at the end delete it if it is still there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk's, for one, names no file
            error.filename = str(target)
            raise
        Path(temporary).chmod(0o666 & ~_UMASK)  # mkstemp keeps a file to its owner alone
        yield Path(temporary)
    finally:
        Path(temporary).unlink(missing_ok=True)
