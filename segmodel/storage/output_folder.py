"""Decides whether a job may write into an output folder: a user's own files are never replaced.

What a job writes has fixed names, and a user may have files of the same names. A job therefore
writes its run file first, and replaces its results only in a folder that holds one.
"""

import errno
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from segmodel.core.errors import ConfigError, DiskFullError
from segmodel.storage import store


@dataclass(frozen=True)
class OutputLayout:
    """The files that one kind of job writes into its output folder."""

    run_file: str
    """Name of the JSON file that marks a folder as a run of this job."""
    key: str
    """A key of the run file. A file of the same name without it was not written by this job."""
    results: tuple[str, ...]
    """All other files and folders that the job writes, relative to the output folder."""

    def holds_run(self, output: str) -> bool:
        """Whether the folder is a run of this job; if not, it holds no file that the job writes.

        Raises:
            ConfigError: it is no run, and holds something that the job would replace.
        """
        path = store.join(output, self.run_file)
        if store.exists(path):
            self._check_run_file(path)
            return True
        for name in self.results:
            if store.exists(store.join(output, name)):
                raise ConfigError(
                    f"{output} holds {name} but no {self.run_file}: this job did not write it, and "
                    "would replace it. Move it away, or give another --output"
                )
        return False

    def remove_results(self, output: str, keep: Collection[str] = ()) -> None:
        """Delete the results but those in `keep`, and nothing else. Only after `holds_run`."""
        for name in self.results:
            if name not in keep:
                store.remove(store.join(output, name))

    def remove_run(self, output: str) -> None:
        """Delete the results and then the run file, so that the folder can be used again."""
        self.remove_results(output)
        store.remove(store.join(output, self.run_file))

    def _check_run_file(self, path: str) -> None:
        try:
            values = json.loads(store.read_bytes(path))
            values[self.key]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path} is damaged or was not written by this job ({type(error).__name__}: "
                f"{error}): give another --output"
            ) from error


@contextmanager
def explain_full_disk(output: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turn the error of a full disk into one that says what is full and what to do.

    Args:
        output: the folder that is written to.
        advice: says what is kept and what to do.

    Raises:
        DiskFullError: no space is left.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        raise DiskFullError(f"{output}: {error.strerror}{where}. {advice()}") from error
