"""The files of one NIfTI case: each is read once, and hashes of all of them are remembered."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress

from segmodel.core.source_files import SourceFiles, hash_of
from segmodel.sources.base import RejectError
from segmodel.sources.file_errors import reject_lasting_errors
from segmodel.sources.nifti_file import NiftiFile, load_nifti
from segmodel.storage import store

_UNREADABLE = "unreadable"


class CaseFiles:
    """Files of one case; the fourth axis of one file may hold several sequences.

    Args:
        folder: of the source.
        paths: of the files below it.
    """

    def __init__(self, folder: str, paths: Sequence[str]) -> None:
        self._folder, self._paths = folder, paths
        self._loaded: dict[str, NiftiFile] = {}

    def load(self, path: str, *, many_volumes: bool = False) -> NiftiFile:
        """One of the files.

        Raises:
            RejectError: it cannot be used.
            OSError: the store gives no answer.
        """
        if path not in self._loaded:
            uri = store.join(self._folder, path)
            self._loaded[path] = load_nifti(uri, many_volumes=many_volumes)
        return self._loaded[path]

    def listing(self) -> str:
        """Hash of names, sizes and times as they are now; no file is read."""
        marks = dict.fromkeys(self._paths, _UNREADABLE)
        for path in marks:
            uri = store.join(self._folder, path)
            with suppress(RejectError), reject_lasting_errors(uri):
                marks[path] = store.file_version(uri)
        return hash_of(marks)

    def content(self) -> str:
        """Hash of names and bytes, whether a file could be used or not."""
        hashes = dict.fromkeys(self._paths, _UNREADABLE)
        for path in hashes:
            if path in self._loaded:
                hashes[path] = self._loaded[path].content_hash
                continue
            uri = store.join(self._folder, path)
            with suppress(RejectError), reject_lasting_errors(uri):
                hashes[path] = hashlib.sha256(store.read_bytes(uri)).hexdigest()
        return hash_of(hashes)

    def source_files(self) -> SourceFiles:
        """For the archive."""
        return SourceFiles(len(self._paths), self.listing(), self.content())
