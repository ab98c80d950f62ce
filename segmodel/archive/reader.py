"""Reads an archive: Parquet files with one row a slice, and archive.json, written last."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmodel.archive.manifest import MANIFEST, read_info
from segmodel.core import schema
from segmodel.core.errors import ArchiveError
from segmodel.storage import parquet_recovery, store
from segmodel.storage.parquet_recovery import DamagedFileError

READ_THREADS = 16


@dataclass(frozen=True)
class Shard:
    """A run of whole row groups of one archive file: the unit of work, of commit and of resume."""

    file: str
    first_row_group: int
    stop_row_group: int
    slices: int
    first_patient: str | None = None
    last_patient: str | None = None
    """From the file's footer: if the file is lost, this patient may have slices elsewhere."""

    @property
    def name(self) -> str:
        """Unique in its archive, the same at every planning."""
        stem = self.file.removesuffix(".parquet")
        return f"{stem}-rows-{self.first_row_group:05d}-{self.stop_row_group:05d}"

    @property
    def output_file(self) -> str:
        """Name of its file in a run's masks/ and quarantine/."""
        return f"{self.name}.parquet"

    def to_json(self) -> str:
        """For `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Shard":
        """The shard that `to_json` wrote."""
        return cls(**json.loads(text))


class RowGroup(NamedTuple):
    """What a file's footer says of one of its row groups."""

    slices: int
    first_patient: str | None
    last_patient: str | None
    """Least and greatest id: slices are sorted by patient. None in a file without statistics."""


@dataclass(frozen=True)
class DamagedFile:
    """A damaged archive file, of which nothing can be used."""

    name: str
    """Of the file, and of its list in a run's quarantine/; names of shards go on with `-rows-`."""
    slices: int
    """That it should hold."""
    reason: str


class Archive:
    """An archive to read.

    Args:
        uri: its folder.
        skip_damaged: set files aside that cannot be read, in `damaged`; otherwise one is an error.

    Raises:
        ArchiveError: there is no archive, none of its files can be read, or its manifest, files
            and columns do not fit together.
    """

    def __init__(self, uri: str, *, skip_damaged: bool = False) -> None:
        self.uri, self.skip_damaged = uri, skip_damaged
        self.info = read_info(uri)
        self.sizes = store.file_sizes(uri, ".parquet")
        """Bytes of each Parquet file in the folder."""
        named = sorted(self.sizes) if self.info.files is None else list(self.info.files)
        self.unnamed = sorted(self.sizes.keys() - set(named))
        """Files that archive.json does not name, as after an append that broke off; ignored."""
        with ThreadPoolExecutor(READ_THREADS) as pool:
            opened = dict(zip(named, pool.map(self._open, named), strict=True))
        self._groups = {name: groups for name, groups in opened.items() if isinstance(groups, list)}
        self.files = list(self._groups)
        """Files that can be read, in the order in which archive.json names them."""
        reasons = {
            name: str(error) for name, error in opened.items() if not isinstance(error, list)
        }
        self.damaged = self._count_damaged(reasons)
        """Only with `skip_damaged`."""
        if reasons and not self.files:
            raise ArchiveError(
                f"{uri}: none of its {len(reasons)} files can be read; the first: "
                f"{next(iter(reasons.values()))}"
            )

    def _open(self, name: str) -> list[RowGroup] | DamagedFileError:
        uri = store.join(self.uri, name)
        try:
            groups = parquet_recovery.read_footer(uri, lambda file: _row_groups(uri, file))
            wanted, found = (
                None if self.info.files is None else self.info.files[name],
                _slices(groups),
            )
            if wanted not in (None, found):
                raise DamagedFileError(
                    f"{uri}: {MANIFEST} counts {wanted} slices in it, it holds {found}; ingest "
                    "again"
                )
        except DamagedFileError as error:
            if self.skip_damaged:
                return error
            raise
        except OSError as error:
            raise ArchiveError(
                f"{uri}: cannot be fetched ({error}); check permissions and network"
            ) from error
        return groups

    def _count_damaged(self, reasons: dict[str, str]) -> list[DamagedFile]:
        if self.info.files is not None:
            return [
                DamagedFile(name, self.info.files[name], reason) for name, reason in reasons.items()
            ]
        found = sum(self.file_slices().values())
        missing = self.info.slices - found
        if missing < 0 or (missing and not reasons):
            raise ArchiveError(
                f"{self.uri}: {MANIFEST} counts {self.info.slices} slices, its Parquet files hold "
                f"{found}; ingest again"
            )
        # An archive of an earlier version tells only the sum: the first file stands for all.
        text = "; ".join(reasons.values())
        return [
            DamagedFile(name, 0 if number else missing, text) for number, name in enumerate(reasons)
        ]

    def file_slices(self) -> dict[str, int]:
        """Slices of each file that can be read."""
        return {name: _slices(groups) for name, groups in self._groups.items()}

    def shards(self, target_slices: int) -> list[Shard]:
        """Plan shards: runs of row groups with `target_slices` slices or more, or a file's rest."""
        plan = []
        for name, groups in self._groups.items():
            first, slices = 0, 0
            for number, group in enumerate(groups):
                slices += group.slices
                if slices >= target_slices or number == len(groups) - 1:
                    plan.append(
                        Shard(
                            name,
                            first,
                            number + 1,
                            slices,
                            groups[first].first_patient,
                            group.last_patient,
                        )
                    )
                    first, slices = number + 1, 0
        return plan

    def index(self) -> pa.Table:
        """`schema.INDEX_COLUMNS` of every slice; with `skip_damaged`, of every readable one.

        Raises:
            ArchiveError: a repeated slice id.
        """
        with ThreadPoolExecutor(READ_THREADS) as pool:
            tables = list(pool.map(self._light, self.files))
        columns = pa.schema(
            [(name, schema.ARCHIVE.field(name).type) for name in schema.INDEX_COLUMNS]
        )  # a damaged one may be null
        index = pa.concat_tables(
            [columns.empty_table(), *(table.cast(columns) for table in tables)]
        )
        ids = index["slice_id"]
        # A string array holds 2 GiB of text at most, and the count makes one of all chunks.
        if pc.count_distinct(ids.cast(pa.large_string())).as_py() < len(ids) - ids.null_count:
            self._refuse_repeated(dict(zip(self.files, tables, strict=True)))
        return index

    def _light(self, name: str) -> pa.Table:
        uri = store.join(self.uri, name)
        groups = range(len(self._groups[name]))
        table, unreadable = parquet_recovery.read_row_groups(uri, groups, schema.INDEX_COLUMNS)
        if unreadable and not self.skip_damaged:
            group, reason = next(iter(unreadable.items()))
            raise ArchiveError(f"{uri}: row group {group}: {reason}; ingest again")
        return table

    def _refuse_repeated(self, tables: dict[str, pa.Table]) -> None:
        counts = pa.chunked_array(
            chunk.cast(pa.large_string())
            for table in tables.values()
            for chunk in table["slice_id"].chunks
        ).value_counts()
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").drop_null()
        first = repeated[0]
        files = [
            name
            for name, table in tables.items()
            if pc.any(pc.equal(table["slice_id"], first.as_py())).as_py()
        ]
        raise ArchiveError(
            f"{self.uri}: {len(repeated)} slice ids occur twice; the first is "
            f"{first.as_py()!r}, in {' and '.join(files)}; ingest again"
        )

    def read_columns(self, columns: list[str]) -> Iterator[pa.Table]:
        """Some columns of every slice, a row group at a time.

        Raises:
            ArchiveError: a row group is damaged.
        """
        for name in self.files:
            path = store.join(self.uri, name)
            with store.open_parquet(path) as file:
                for group in range(file.num_row_groups):
                    try:
                        table = parquet_recovery.convert_columns(
                            file.read_row_group(group, columns=columns), columns
                        )
                    except parquet_recovery.READ_ERRORS:
                        table = _whole(path, [group], columns)
                    yield table


def read_shard(uri: str, shard: Shard) -> pa.Table:
    """All columns of one shard of the archive `uri`; `check_slices` finds damaged slices.

    Raises:
        ArchiveError: the file or a row group is damaged.
    """
    return _whole(
        store.join(uri, shard.file),
        range(shard.first_row_group, shard.stop_row_group),
        schema.ARCHIVE.names,
    )


def _whole(path: str, groups: Sequence[int], columns: list[str]) -> pa.Table:
    table, unreadable = parquet_recovery.read_row_groups(path, groups, columns)
    for group, reason in unreadable.items():
        raise ArchiveError(
            f"{path}: row group {group} {reason}; restore a good copy of the file, or ingest again"
        )
    return table


def row_groups(file: pq.ParquetFile, numbers: Iterable[int]) -> list[RowGroup]:
    """Some of an archive file, from its footer alone."""
    metadata, names = file.metadata, file.schema.names
    column = names.index("patient_id") if "patient_id" in names else None
    groups = []
    for group in map(metadata.row_group, numbers):
        statistics = None if column is None else group.column(column).statistics
        if statistics is None or not statistics.has_min_max:
            groups.append(RowGroup(group.num_rows, None, None))
        else:
            groups.append(RowGroup(group.num_rows, statistics.min, statistics.max))
    return groups


def _row_groups(uri: str, file: pq.ParquetFile) -> list[RowGroup]:
    """All of them, once the columns are what they must be."""
    _check_columns(uri, file.schema_arrow)
    return row_groups(file, range(file.metadata.num_row_groups))


def _slices(groups: list[RowGroup]) -> int:
    return sum(group.slices for group in groups)


def _check_columns(uri: str, found: pa.Schema) -> None:
    for field in schema.ARCHIVE:
        index = found.get_field_index(field.name)
        if index < 0 and field.name in schema.ADDED_COLUMNS:
            continue
        if index < 0:
            raise DamagedFileError(f"{uri}: column {field.name!r} is missing; ingest again")
        if found.field(index).type not in (field.type, schema.EARLIER_TYPES.get(field.name)):
            raise DamagedFileError(
                f"{uri}: column {field.name!r} is {found.field(index).type}, expected "
                f"{field.type}; ingest again"
            )
