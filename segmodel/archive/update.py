"""Changes an archive: looks at what is there, then publishes a new archive.json.

New files lie beside the old ones under names of their own. They count from the moment at which
archive.json is replaced; files that it no longer names are removed after that. Until then the old
archive is whole, and another job's archive is never written over.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from segmodel.archive import manifest
from segmodel.archive.manifest import MANIFEST, REJECTS, ArchiveInfo
from segmodel.archive.reader import Archive
from segmodel.archive.slice_file import SERIES, WrittenFile, read_series
from segmodel.core import schema
from segmodel.core.errors import ArchiveError, LeaseLostError
from segmodel.core.progress import say
from segmodel.core.source_files import SourceFiles
from segmodel.storage import conditional, store


class ArchiveUpdate:
    """What one ingest changes in the folder of an archive; nothing is written at first.

    Args:
        uri: the folder.
        new: archive.json of an archive without patients, with what the scans to come have.
        overwrite: replace an archive that is there.
        add: to the archive that is there.

    Raises:
        ArchiveError: an archive is there already, or none to add to, or archive.json is not ours,
            or what there is has other channels or another scaling.
    """

    def __init__(self, uri: str, new: ArchiveInfo, *, overwrite: bool, add: bool) -> None:
        self.uri, self.add = uri, add
        self.ingest = manifest.new_ingest_id()
        self.known: dict[str, dict[str, SourceFiles | None]] = {}
        """Series of each patient that are there, and what each was made from, if that is known."""
        self._old_rejects: set[tuple[str, ...]] = set()
        self._superseded: list[str] = []
        self._unnamed: ArchiveInfo | None = None
        self._request: dict[str, str | None] | None = None
        content, self._version = _read_version(store.join(uri, MANIFEST))
        if add:
            self.before = self._open_old(new)
        elif content is None:
            self.before = new
        elif overwrite:
            self.before, self._superseded = new, _files_of(uri, content)
        else:
            raise ArchiveError(
                f"{uri} already holds an archive; give --overwrite to replace it, "
                "--append to add patients to it, or another --archive"
            )

    def begin(self) -> None:
        """To be called before the first file is written, in a folder that is this job's alone.

        Raises:
            ArchiveError: another job has changed the archive since the look at it.
        """
        if _read_version(store.join(self.uri, MANIFEST))[1] != self._version:
            raise ArchiveError(
                f"{self.uri}: another job has just changed this archive; give the same command "
                "again"
            )
        if self._request is not None:
            name = store.join(self.uri, manifest.REPORTS, manifest.request_file(self.ingest))
            store.publish_json(name, self._request)
        if self._unnamed is not None:
            # Where archive.json names no files, all in the folder count, new ones at once.
            self._publish_manifest(self._unnamed)
            _, self._version = _read_version(store.join(self.uri, MANIFEST))

    def commit(
        self,
        files: Sequence[WrittenFile],
        rejects: pa.Table,
        choices: pa.Table | None = None,
        patients: int | None = None,
    ) -> ArchiveInfo:
        """Publish archive.json with some new files, then remove what no longer counts.

        Args:
            files: as their writers reported them.
            rejects: `schema.REJECTS`; rows that are in the archive already are passed over.
            choices: `schema.SERIES_CHOICES`.
            patients: of the files that are not in the archive yet; by default all.
        """
        rejects = self._without_known(rejects)
        if self.add and not files and not rejects.num_rows:
            self._remove_what_no_longer_counts(self.before)
            return self.before
        choice_files = dict(self.before.choice_files or {})
        if choices is not None and choices.num_rows:
            name = manifest.choice_file(self.ingest)
            store.publish_table(store.join(self.uri, manifest.CHOICES, name), choices)
            choice_files[name] = choices.num_rows
        reject_files = dict(self.before.reject_files or {})
        if rejects.num_rows:
            name = manifest.reject_file(self.ingest)
            store.publish_table(store.join(self.uri, REJECTS, name), rejects)
            reject_files[name] = rejects.num_rows
        added = sum(file.patients for file in files) if patients is None else patients
        info = replace(
            self.before,
            patients=self.before.patients + added,
            format_version=schema.FORMAT_VERSION,
            slices=self.before.slices + sum(file.slices for file in files),
            annotated_slices=self.before.annotated_slices
            + sum(file.annotated_slices for file in files),
            rejects=sum(reject_files.values()),
            files={**(self.before.files or {}), **{file.name: file.slices for file in files}},
            reject_files=reject_files,
            choice_files=choice_files,
        )
        self._publish_manifest(info)
        self._remove_what_no_longer_counts(info)
        return info

    def resume(self, request: str) -> dict[str, bytes]:
        """Go on with a broken-off ingest of the same request; call this before `begin`.

        Args:
            request: hash of all that decides what the ingest writes.

        Returns:
            What its finished portions reported, by the name of the portion; {} for a new ingest.
        """
        self._request = {"request": request, "archive": self._version}
        folder = store.join(self.uri, manifest.REPORTS)
        found: dict[str, list[tuple[str, str]]] = {}
        for name in store.list_files(folder, ".json"):
            if (known := manifest.reported_part(name)) is not None:
                found.setdefault(known[0], []).append((known[1], name))
        for ingest, names in found.items():
            contents = {part: store.read_bytes(store.join(folder, name)) for part, name in names}
            if _same(contents.pop("", b""), self._request):
                self.ingest = ingest
                return contents
        return {}

    def _open_old(self, new: ArchiveInfo) -> ArchiveInfo:
        """Open the existing archive, and check that the new patients can be added to it."""
        archive = Archive(self.uri)
        info = archive.info
        for name, found, wanted in (
            ("channels", ", ".join(info.channels), ", ".join(new.channels)),
            ("intensity scaling", info.intensity_scaling, new.intensity_scaling),
        ):
            if found != wanted:
                raise ArchiveError(
                    f"{self.uri}: its {name}: {found}; those of the new scans: {wanted}; "
                    "ingest them elsewhere"
                )
        self.known = _known_series(archive)
        files = archive.file_slices() if info.files is None else info.files
        reject_files = info.reject_files
        if reject_files is None:
            reject_files = {manifest.EARLIER_REJECTS: info.rejects} if info.rejects else {}
        for name, rows in reject_files.items():
            with store.open_parquet(store.join(self.uri, REJECTS, name)) as file:
                # An append of an earlier version that broke off may have left more rows.
                self._old_rejects |= _rows(file.read().slice(0, rows))
        named = replace(info, files=files, reject_files=reject_files)
        if info.files is None:
            self._unnamed = named
        sources = info.source.split("; ")
        source = info.source if new.source in sources else f"{info.source}; {new.source}"
        return replace(named, source=source)

    def _without_known(self, rejects: pa.Table) -> pa.Table:
        new = [tuple(row.values()) not in self._old_rejects for row in rejects.to_pylist()]
        return rejects.filter(pa.array(new, pa.bool_()))

    def _publish_manifest(self, info: ArchiveInfo) -> None:
        path, content = store.join(self.uri, MANIFEST), _json(info)
        try:
            if self._version is None:
                conditional.create(path, content)
            else:
                conditional.replace(path, content, self._version)
        except (FileExistsError, FileNotFoundError) as error:
            if _read_version(path)[0] == content:
                return  # the first PUT arrived and its answer did not; the client repeated it
            raise LeaseLostError(
                f"{path} was changed by another job while this one ran; that job's archive stays. "
                "Look at it, then give the same command again if it is still wanted"
            ) from error

    def _remove_what_no_longer_counts(self, info: ArchiveInfo) -> None:
        files = info.files or {}
        series = [f"{SERIES}/{name}" for name in files]
        rejects = [f"{REJECTS}/{name}" for name in info.reject_files or {}]
        choices = [f"{manifest.CHOICES}/{name}" for name in info.choice_files or {}]
        counted = {*files, *series, *rejects, *choices}
        unwanted = {*self._superseded, *_own_files(self.uri)} - counted
        try:
            _remove(self.uri, sorted(unwanted))
            for folder in (SERIES, REJECTS, manifest.CHOICES, manifest.REPORTS):
                store.remove_empty_folder(store.join(self.uri, folder))
        except OSError as error:
            say(
                f"warning: {self.uri}: not all files that {MANIFEST} no longer names could be "
                f"removed ({error}); they do not count, delete them"
            )


def _known_series(archive: Archive) -> dict[str, dict[str, SourceFiles | None]]:
    keys = archive.index().select(["patient_id", "series_id"])
    found: dict[str, dict[str, SourceFiles | None]] = {}
    for row in keys.group_by(keys.column_names).aggregate([]).to_pylist():
        found.setdefault(row["patient_id"], {})[row["series_id"]] = None
    columns = ["source_files", "source_listing", "source_content"]
    for row in read_series(archive.uri, archive.files).to_pylist():
        if row["source_files"] is not None:
            files = SourceFiles(*(row[name] for name in columns))
            found.setdefault(row["patient_id"], {})[row["series_id"]] = files
    return found


def _files_of(uri: str, content: bytes) -> list[str]:
    """Files of the archive in the folder that are its own, by the text of its archive.json.

    Raises:
        ArchiveError: the text is not that of an archive, of whatever version.
    """
    try:
        values: Any = json.loads(content)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not {"format_version", "archive_id"} <= values.keys():
        raise ArchiveError(
            f"{uri}: {MANIFEST} is not an archive's and is left alone; "
            "give another --archive, or move the file away"
        )
    names, rejects = (
        None if values.get(key) is None else list(values[key]) for key in ("files", "reject_files")
    )
    # Only what the listings show is taken: a name cannot lead out of the folder.
    slices = [
        name
        for name in store.list_files(uri, ".parquet")
        if (manifest.is_earlier_slice_file(name) if names is None else name in names)
    ]
    named = [manifest.EARLIER_REJECTS] if rejects is None else rejects
    listed = store.list_files(store.join(uri, REJECTS))
    return slices + [f"{REJECTS}/{name}" for name in listed if name in named]


def _own_files(uri: str) -> list[str]:
    """Files in the folder with a name that an ingest made up."""
    kinds = (
        ("", manifest.is_slice_file),
        (f"{SERIES}/", manifest.is_slice_file),
        (f"{REJECTS}/", manifest.is_reject_file),
        (f"{manifest.CHOICES}/", manifest.is_choice_file),
        (f"{manifest.REPORTS}/", manifest.reported_part),
    )
    return [
        f"{folder}{name}"
        for folder, is_own in kinds
        for name in store.list_files(store.join(uri, folder.rstrip("/")) if folder else uri)
        if is_own(name)
    ]


def _same(content: bytes, request: dict[str, str | None]) -> bool:
    """Whether a file of an unfinished ingest names that request."""
    try:
        return bool(json.loads(content) == request)
    except ValueError:
        return False


def _remove(uri: str, names: list[str]) -> None:
    for name in names:
        store.remove(store.join(uri, name))


def _read_version(path: str) -> tuple[bytes | None, str | None]:
    """Content and version of a file, each None if there is no such file."""
    try:
        return conditional.read_version(path)
    except FileNotFoundError:
        return None, None


def _rows(table: pa.Table) -> set[tuple[str, ...]]:
    return {tuple(row.values()) for row in table.select(schema.REJECTS.names).to_pylist()}


def _json(info: ArchiveInfo) -> bytes:
    return (json.dumps(asdict(info), indent=2) + "\n").encode()
