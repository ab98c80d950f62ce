"""The archive: a folder of Parquet files, one row a slice, and archive.json, which is written last."""

import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmodel import schema, storage
from segmodel.errors import ArchiveError

MANIFEST = "archive.json"
REJECTS = "rejects/rejects.parquet"
ROW_GROUP_SLICES = 64
FILE_SLICES = 4096


@dataclass(frozen=True)
class ArchiveInfo:
    """What archive.json says."""

    format_version: int
    archive_id: str
    """Made new by every ingest: two archives with the same id hold the same slices."""
    source: str
    channels: tuple[str, ...]
    intensity_scaling: str
    patients: int
    slices: int
    annotated_slices: int
    rejects: int


@dataclass(frozen=True)
class Shard:
    """A run of whole row groups of one archive file: the unit of work, of commit and of resume."""

    file: str
    first_row_group: int
    stop_row_group: int
    slices: int

    @property
    def name(self) -> str:
        """Unique in its archive, the same at every planning."""
        stem = self.file.removesuffix(".parquet")
        return f"{stem}-rows-{self.first_row_group:05d}-{self.stop_row_group:05d}"

    @property
    def output_file(self) -> str:
        """Name of its file in a run's masks/, and in quarantine/ if one of its slices could not be segmented."""
        return f"{self.name}.parquet"


class ArchiveWriter:
    """Writes an archive in the order in which it is given patients; the archive exists once it is closed.

    Args:
        uri: folder to write.
        overwrite: remove an archive that is already there.

    Raises:
        ArchiveError: something is there already; or, from `append`, rows out of order or an id that came before.
    """

    def __init__(self, uri: str, *, source: str, channels: tuple[str, ...], intensity_scaling: str, overwrite: bool) -> None:
        self.uri, self.source, self.channels, self.intensity_scaling = uri, source, channels, intensity_scaling
        left_over = storage.list_files(uri, ".parquet")
        if (left_over or storage.exists(storage.join(uri, MANIFEST))) and not overwrite:
            state = "already holds an archive" if storage.exists(storage.join(uri, MANIFEST)) else "holds an unfinished archive"
            raise ArchiveError(f"{uri} {state}; give --overwrite to replace it, or another --archive")
        for name in (MANIFEST, *left_over, REJECTS):
            storage.remove(storage.join(uri, name))
        self._pending: list[pa.Table] = []
        self._rejects: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None
        self._file_slices = self._files = 0
        self._ids: set[str] = set()
        self._patients: list[str] = []
        self._annotated = 0

    def append(self, slices: pa.Table, rejects: pa.Table) -> None:
        """Add all slices of one patient, and the files of that patient that were left out."""
        self._rejects.append(rejects)
        if slices.num_rows == 0:
            return
        patient = slices["patient_id"][0].as_py()
        if self._patients and patient <= self._patients[-1]:
            raise ArchiveError(f"{self.uri}: patient {patient!r} comes after {self._patients[-1]!r}; patients must be in order")
        problems = [f"slice {p.slice_id!r} {p.reason}" for p in check_slices(slices, len(self.channels))]
        twice = self._ids.intersection(slices["slice_id"].to_pylist())
        problems += [f"slice id {name!r} came with an earlier patient" for name in sorted(twice)]
        if problems:
            raise ArchiveError(f"{self.uri}: patient {patient!r}: {problems[0]}")
        self._ids.update(slices["slice_id"].to_pylist())
        self._patients.append(patient)
        self._annotated += slices.num_rows - slices["mask"].null_count
        self._pending.append(slices.sort_by([("series_id", "ascending"), ("slice_index", "ascending")]))
        self._write_row_groups(ROW_GROUP_SLICES)
        if self._file_slices >= FILE_SLICES:
            self._close_file()

    def close(self) -> ArchiveInfo:
        """Write what is pending, the rejects and archive.json."""
        self._close_file()
        rejects = pa.concat_tables([schema.REJECTS.empty_table(), *self._rejects])
        storage.publish_table(storage.join(self.uri, REJECTS), rejects)
        info = ArchiveInfo(
            format_version=schema.FORMAT_VERSION,
            archive_id=uuid.uuid4().hex,
            source=self.source,
            channels=self.channels,
            intensity_scaling=self.intensity_scaling,
            patients=len(self._patients),
            slices=len(self._ids),
            annotated_slices=self._annotated,
            rejects=rejects.num_rows,
        )
        storage.publish_json(storage.join(self.uri, MANIFEST), asdict(info))
        return info

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # No archive.json on an error: what lies there then is not taken for an archive.
        if self._writer is not None:
            self._writer.close()
            self._sink.close()

    def _write_row_groups(self, at_least: int) -> None:
        pending = pa.concat_tables(self._pending)
        take = pending.num_rows - pending.num_rows % at_least
        if take:
            if self._writer is None:
                self._sink = storage.open_output(storage.join(self.uri, f"part-{self._files:05d}.parquet"))
                # A dictionary of images only costs time; ids and numbers gain from one.
                light = [name for name in schema.ARCHIVE.names if name not in ("pixels", "mask")]
                self._writer = pq.ParquetWriter(
                    self._sink, schema.ARCHIVE, compression="zstd", use_dictionary=light, write_statistics=light
                )
                self._files += 1
            self._writer.write_table(pending.slice(0, take), row_group_size=ROW_GROUP_SLICES)
            self._file_slices += take
        self._pending = [pending.slice(take)]

    def _close_file(self) -> None:
        if self._pending:
            self._write_row_groups(1)
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._writer, self._file_slices = None, 0


class Archive:
    """An archive to read.

    Raises:
        ArchiveError: there is no archive, or its manifest, its files and their columns do not fit together.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.info = _read_manifest(uri)
        self.files = storage.list_files(uri, ".parquet")
        found = sum(self._metadata[name].num_rows for name in self.files)
        if found != self.info.slices:
            raise ArchiveError(
                f"{uri}: {MANIFEST} counts {self.info.slices} slices, its Parquet files hold {found}; ingest again"
            )

    @cached_property
    def _metadata(self) -> dict[str, pq.FileMetaData]:
        metadata = {}
        for name in self.files:
            uri = storage.join(self.uri, name)
            try:
                with storage.open_parquet(uri) as file:
                    metadata[name] = file.metadata
                    arrow_schema = file.schema_arrow
            except (pa.ArrowInvalid, OSError) as error:
                raise ArchiveError(f"{uri}: not a readable Parquet file ({error}); ingest again") from error
            _check_columns(uri, arrow_schema)
        return metadata

    def shards(self, target_slices: int) -> list[Shard]:
        """The plan: runs of row groups with at least `target_slices` slices, but for the last of each file."""
        plan = []
        for name in self.files:
            metadata = self._metadata[name]
            first, slices = 0, 0
            for group in range(metadata.num_row_groups):
                slices += metadata.row_group(group).num_rows
                if slices >= target_slices or group == metadata.num_row_groups - 1:
                    plan.append(Shard(name, first, group + 1, slices))
                    first, slices = group + 1, 0
        return plan

    def index(self) -> pa.Table:
        """The light columns of every slice, `schema.INDEX_COLUMNS`.

        Raises:
            ArchiveError: a null or repeated slice id.
        """
        tables = []
        seen: dict[str, str] = {}
        for name in self.files:
            uri = storage.join(self.uri, name)
            with storage.open_parquet(uri) as file:
                table = file.read(columns=schema.INDEX_COLUMNS)
            for column in ("slice_id", "patient_id", "series_id", "slice_index", "height", "width"):
                if table[column].null_count:
                    row = pc.index(pc.is_null(table[column]), True).as_py()
                    raise ArchiveError(f"{uri}: {column!r} of row {row} is null; ingest this file's patients again")
            for slice_id in table["slice_id"].to_pylist():
                if slice_id in seen:
                    raise ArchiveError(f"{uri}: slice id {slice_id!r} is there twice (also in {seen[slice_id]}); ingest again")
                seen[slice_id] = name
            tables.append(table)
        return pa.concat_tables([pa.schema([schema.ARCHIVE.field(n) for n in schema.INDEX_COLUMNS]).empty_table(), *tables])

    def read_columns(self, columns: list[str]) -> Iterator[pa.Table]:
        """Some columns of every slice, a row group at a time."""
        for name in self.files:
            with storage.open_parquet(storage.join(self.uri, name)) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=columns)


def read_shard(uri: str, shard: Shard) -> pa.Table:
    """All columns of one shard of the archive `uri`, as they stand: `check_slices` tells which slices are damaged."""
    with storage.open_parquet(storage.join(uri, shard.file)) as file:
        groups = range(shard.first_row_group, shard.stop_row_group)
        return file.read_row_groups(groups, columns=schema.ARCHIVE.names)


@dataclass(frozen=True)
class SliceProblem:
    """Why a slice cannot be used."""

    row: int
    slice_id: str | None
    reason: str


def check_slices(table: pa.Table, channels: int) -> list[SliceProblem]:
    """Slices whose ids, shape or bytes break the archive's format, in the order of their rows; one problem a slice."""
    problems = []
    light = table.select(schema.INDEX_COLUMNS).to_pylist()
    repeated = {name for name, count in Counter(row["slice_id"] for row in light).items() if count > 1}
    pixel_bytes = pc.binary_length(table["pixels"]).to_pylist()
    mask_bytes = pc.binary_length(table["mask"]).to_pylist()
    for number, row in enumerate(light):
        height, width = row["height"], row["width"]
        empty = [
            name for name in ("slice_id", "patient_id", "series_id", "slice_index", "height", "width") if row[name] is None
        ]
        reason = None
        if empty:
            reason = f"has no {' and no '.join(empty)}"
        elif row["slice_id"] in repeated:
            reason = "is there twice"
        elif height < 1 or width < 1:
            reason = f"is {height}x{width} pixels"
        elif pixel_bytes[number] != height * width * channels:
            want = height * width * channels
            reason = f"holds {pixel_bytes[number] or 0} bytes in column 'pixels', expected {height}x{width}x{channels} = {want}"
        elif mask_bytes[number] not in (None, height * width):
            reason = f"holds {mask_bytes[number]} bytes in column 'mask', expected {height}x{width} = {height * width}"
        if reason:
            problems.append(SliceProblem(number, row["slice_id"], reason))
    return problems


def image(row: pa.Scalar, height: int, width: int, channels: int) -> npt.NDArray[np.uint8]:
    """The pixels of one slice, uint8 (rows, columns, channels), without a copy."""
    return np.frombuffer(row.as_buffer(), dtype=np.uint8).reshape(height, width, channels)


def shown_channel(channels: Sequence[str]) -> int:
    """Number of the channel that pictures for people show: FLAIR, where a glioma is bright, or else the first."""
    return next((number for number, name in enumerate(channels) if name.lower() == "flair"), 0)


def _read_manifest(uri: str) -> ArchiveInfo:
    path = storage.join(uri, MANIFEST)
    try:
        values = json.loads(storage.read_bytes(path))
    except FileNotFoundError:
        what = "an ingest that was not finished" if storage.list_files(uri, ".parquet") else "no archive"
        raise ArchiveError(f"{uri}: {what} ({MANIFEST} is not there); make one with python -m jobs.ingest") from None
    except ValueError as error:
        raise ArchiveError(f"{path}: not JSON ({error}); ingest again") from error
    if not isinstance(values, dict) or values.get("format_version") != schema.FORMAT_VERSION:
        version = values.get("format_version") if isinstance(values, dict) else None
        raise ArchiveError(f"{path}: format version {version}, this version reads {schema.FORMAT_VERSION}; ingest again")
    missing = {field.name for field in fields(ArchiveInfo)} - values.keys()
    if missing:
        raise ArchiveError(f"{path}: no {', '.join(sorted(missing))}; ingest again")
    known = {field.name: values[field.name] for field in fields(ArchiveInfo)}
    return ArchiveInfo(**{**known, "channels": tuple(known["channels"])})


def _check_columns(uri: str, found: pa.Schema) -> None:
    for field in schema.ARCHIVE:
        index = found.get_field_index(field.name)
        if index < 0:
            raise ArchiveError(f"{uri}: column {field.name!r} is missing; ingest again")
        if found.field(index).type != field.type:
            raise ArchiveError(
                f"{uri}: column {field.name!r} is {found.field(index).type}, expected {field.type}; ingest again"
            )
