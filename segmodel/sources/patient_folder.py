"""The folder of one patient: its files, those that cannot be read, and their hashes."""

import hashlib
from collections.abc import Callable
from contextlib import suppress

from segmodel.core.source_files import SourceFiles, hash_of
from segmodel.sources.base import RejectError
from segmodel.sources.file_errors import as_text, reject_lasting_errors
from segmodel.storage import store


class PatientFolder:
    """A patient's folder, listed once; remembers a hash of every file that was read.

    Args:
        uri: the folder.
        is_slice: whether a file of this name holds pixels or a mask.

    Raises:
        RejectError: the folder cannot be listed, or is not named in UTF-8.
    """

    def __init__(self, uri: str, is_slice: Callable[[str], object]) -> None:
        self._is_slice = is_slice
        if as_text(uri) != uri:
            raise RejectError("its name is not UTF-8")
        self.uri = uri
        with reject_lasting_errors(uri):
            self._marks = store.file_versions(uri)
            self.folders = store.list_folders(uri)
        self.names = sorted(self._marks)
        self._hashes: dict[str, str] = {}

    def read(self, name: str) -> bytes:
        """One file.

        Raises:
            RejectError: the file cannot be read.
        """
        uri = store.join(self.uri, name)
        self._hashes[name] = "unreadable"
        with reject_lasting_errors(uri):
            content = store.read_bytes(uri)
        self._hashes[name] = hashlib.sha256(content).hexdigest()
        return content

    def listing(self) -> str:
        """See `SourceFiles.listing`."""
        return hash_of(self._marks)

    def content(self) -> str:
        """See `SourceFiles.content`; of files that hold no slice only the names count."""
        for name in self.names:
            if self._is_slice(name) and name not in self._hashes:
                with suppress(RejectError):
                    self.read(name)
        return hash_of({name: self._hashes.get(name, "") for name in self.names})

    def source_files(self) -> SourceFiles:
        """For the archive."""
        return SourceFiles(len(self.names), self.listing(), self.content())


def list_folder(folder: str) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder."""
    with reject_lasting_errors(folder):
        return store.list_files(folder), store.list_folders(folder)
