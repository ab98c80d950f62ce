import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmodel.archive import reader
from segmodel.archive import writer as archive_writer
from segmodel.archive.manifest import ArchiveInfo
from segmodel.archive.reader import Archive, Shard, read_shard
from segmodel.archive.slice_format import image, images
from segmodel.core import schema
from segmodel.core.errors import ArchiveError
from segmodel.core.geometry import Spacing
from segmodel.sources.base import slice_row
from tests.support.archive_writer import ArchiveWriter

PART = "slices-000000000001-00000.parquet"
NO_REJECTS = schema.REJECTS.empty_table()
pytestmark = pytest.mark.usefixtures("numbered_ingests")


def slices_of(
    patient_id: str,
    indices: list[int],
    *,
    size: tuple[int, int] = (1, 2),
    masked: bool = True,
    spacing: Spacing | None = None,
) -> pa.Table:
    """Slices of three channels whose pixels all hold their slice index."""
    rows = [
        slice_row(
            slice_id=f"{patient_id}_{index}",
            patient_id=patient_id,
            slice_index=index,
            pixels_hwc=np.full((*size, 3), index, dtype=np.uint8),
            mask_hw=np.ones(size, dtype=bool) if masked else None,
            spacing=spacing,
            source_uri=f"/scans/{patient_id}_{index}.tif",
        )
        for index in indices
    ]
    return pa.Table.from_pylist(rows, schema=schema.ARCHIVE)


def open_writer(folder: Path, *, overwrite: bool = False) -> ArchiveWriter:
    return ArchiveWriter(
        str(folder),
        source="test",
        channels=("pre", "FLAIR", "post"),
        intensity_scaling="none",
        overwrite=overwrite,
    )


def write(folder: Path, *patients: pa.Table, overwrite: bool = False) -> ArchiveInfo:
    with open_writer(folder, overwrite=overwrite) as writer:
        for slices in patients:
            writer.append(slices, NO_REJECTS)
        return writer.close()


def replace_column(folder: Path, name: str, values: list[object]) -> None:
    """Write the first Parquet file anew with other values in one column, which may then be null."""
    table = pq.read_table(folder / PART)
    column = table.schema.get_field_index(name)
    field = pa.field(name, schema.ARCHIVE.field(name).type)
    pq.write_table(table.set_column(column, field, pa.array(values, field.type)), folder / PART)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    slices = slices_of(
        "A", [1, 2], size=(2, 5), spacing=Spacing(slice_mm=5.0, row_mm=0.5, column_mm=0.25)
    )
    info = write(tmp_path, slices, slices_of("B", [7], size=(3, 1), masked=False))
    archive = Archive(str(tmp_path))
    table = pa.concat_tables(
        read_shard(archive.uri, shard) for shard in archive.shards(target_slices=1)
    )
    assert archive.info == info
    assert (info.patients, info.slices, info.annotated_slices, info.rejects) == (2, 3, 2, 0)
    assert info.channels == ("pre", "FLAIR", "post")
    assert table.slice(0, 2).equals(slices)
    assert table["slice_spacing_mm"].to_pylist() == [5.0, 5.0, None]
    assert table["row_spacing_mm"].to_pylist() == [0.5, 0.5, None]
    assert table["mask"].to_pylist() == [b"\x01" * 10, b"\x01" * 10, None]
    np.testing.assert_array_equal(image(table["pixels"][2], 3, 1, 3), np.full((3, 1, 3), 7))


def test_row_groups_hold_at_most_64_slices_and_are_filled_across_patients(tmp_path: Path) -> None:
    write(tmp_path, slices_of("A", list(range(1, 101))), slices_of("B", list(range(1, 31))))
    metadata = pq.read_metadata(tmp_path / PART)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [
        64,
        64,
        2,
    ]


def test_slices_of_a_patient_are_sorted_by_index_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, slices_of("A", [10, 2, 1]), slices_of("B", [3, 1]))
    index = Archive(str(tmp_path)).index()
    assert index["slice_id"].to_pylist() == ["A_1", "A_2", "A_10", "B_1", "B_3"]
    assert index.column_names == schema.INDEX_COLUMNS


def test_a_file_that_is_full_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_writer, "FILE_SLICES", 128)
    write(tmp_path, *(slices_of(patient, list(range(1, 65))) for patient in "ABC"))
    archive = Archive(str(tmp_path))
    assert archive.files == [PART, "slices-000000000001-00001.parquet"]
    assert archive.shards(target_slices=64) == [
        Shard(PART, 0, 1, 64, "A", "A"),
        Shard(PART, 1, 2, 64, "B", "B"),
        Shard("slices-000000000001-00001.parquet", 0, 1, 64, "C", "C"),
    ]
    assert archive.shards(target_slices=65) == [
        Shard(PART, 0, 2, 128, "A", "B"),
        Shard("slices-000000000001-00001.parquet", 0, 1, 64, "C", "C"),
    ]


def test_shards_cover_every_slice_once_and_are_the_same_at_every_planning(tmp_path: Path) -> None:
    write(tmp_path, slices_of("A", list(range(1, 101))), slices_of("B", list(range(1, 31))))
    shards = Archive(str(tmp_path)).shards(target_slices=100)
    tables = [read_shard(str(tmp_path), shard) for shard in shards]
    expected = [f"A_{index}" for index in range(1, 101)] + [f"B_{index}" for index in range(1, 31)]
    assert [shard.name for shard in shards] == [
        "slices-000000000001-00000-rows-00000-00002",
        "slices-000000000001-00000-rows-00002-00003",
    ]
    assert [shard.slices for shard in shards] == [table.num_rows for table in tables] == [128, 2]
    assert pa.concat_tables(tables)["slice_id"].to_pylist() == expected
    assert Archive(str(tmp_path)).shards(target_slices=100) == shards


def test_rejects_are_counted_and_written_beside_the_archive(tmp_path: Path) -> None:
    rejects = pa.Table.from_pylist(
        [{"source_uri": "/scans/x.txt", "patient_id": "A", "reason": "no TIFF"}],
        schema=schema.REJECTS,
    )
    with open_writer(tmp_path) as writer:
        writer.append(slices_of("A", [1]), rejects)
        writer.append(schema.ARCHIVE.empty_table(), rejects)
        info = writer.close()
    assert (info.patients, info.rejects) == (1, 2)
    assert pq.read_table(tmp_path / "rejects/rejects-000000000001.parquet")[
        "reason"
    ].to_pylist() == [
        "no TIFF",
        "no TIFF",
    ]
    assert Archive(str(tmp_path)).files == [PART]


def test_a_source_without_a_usable_slice_makes_an_empty_archive(tmp_path: Path) -> None:
    write(tmp_path)
    archive = Archive(str(tmp_path))
    assert archive.shards(target_slices=64) == []
    assert archive.index().num_rows == 0


def test_ids_are_not_counted_as_texts_of_2_gib_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_distinct, most = reader.pc.count_distinct, 4

    def with_a_small_limit(ids: pa.ChunkedArray) -> pa.Scalar:
        """Arrow's, as if a string array held 4 bytes at most."""
        if ids.type == pa.string() and sum(len(text) for text in ids.to_pylist()) > most:
            raise pa.ArrowCapacityError(f"array cannot contain more than {most} bytes")
        return count_distinct(ids)

    monkeypatch.setattr(reader.pc, "count_distinct", with_a_small_limit)
    write(tmp_path, slices_of("A", [1, 2]))
    assert Archive(str(tmp_path)).index()["slice_id"].to_pylist() == ["A_1", "A_2"]


def test_two_ingests_never_share_an_archive_id(tmp_path: Path) -> None:
    first = write(tmp_path / "a", slices_of("A", [1]))
    second = write(tmp_path / "b", slices_of("A", [1]))
    assert first.archive_id != second.archive_id


def test_a_second_write_is_refused_and_leaves_the_first(tmp_path: Path) -> None:
    info = write(tmp_path, slices_of("A", [1]))
    with pytest.raises(ArchiveError, match="already holds an archive; give --overwrite"):
        write(tmp_path, slices_of("B", [1]))
    assert Archive(str(tmp_path)).info == info


def test_patients_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="patient 'A' comes after 'B'"):
        write(tmp_path, slices_of("B", [1]), slices_of("A", [1]))


def test_a_patient_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="patient 'A' comes after 'A'"):
        write(tmp_path, slices_of("A", [1]), slices_of("A", [2]))


def test_a_slice_id_that_comes_twice_is_refused_by_the_writer(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="slice 'A_1' occurs twice"):
        write(tmp_path, slices_of("A", [1, 1]))


def test_a_folder_without_archive_is_refused_with_the_command_that_makes_one(
    tmp_path: Path,
) -> None:
    with pytest.raises(ArchiveError, match=r"no archive .*python -m jobs\.ingest"):
        Archive(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "not JSON"),
        ("[]", "format version None"),
        ('{"format_version": 99}', "format version 99, this program reads 1 and 2"),
        ('{"format_version": 1, "slices": 1}', "no annotated_slices, archive_id, channels"),
    ],
)
def test_a_manifest_of_something_else_is_refused(
    tmp_path: Path, manifest: str, message: str
) -> None:
    write(tmp_path, slices_of("A", [1]))
    (tmp_path / "archive.json").write_text(manifest)
    with pytest.raises(ArchiveError, match=f"archive.json: {message}"):
        Archive(str(tmp_path))


def test_a_manifest_that_counts_other_slices_than_its_files_hold_is_refused(tmp_path: Path) -> None:
    write(tmp_path, slices_of("A", [1, 2]))
    manifest = json.loads((tmp_path / "archive.json").read_text())
    (tmp_path / "archive.json").write_text(json.dumps({**manifest, "slices": 3}))
    with pytest.raises(ArchiveError, match=r"archive\.json: counts 3 slices, and 2 in its files"):
        Archive(str(tmp_path))


@pytest.mark.parametrize("name", ["../elsewhere.parquet", ".hidden.parquet"])
def test_a_manifest_that_names_files_of_other_folders_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, slices_of("A", [1]))
    manifest = json.loads((tmp_path / "archive.json").read_text())
    (tmp_path / "archive.json").write_text(json.dumps({**manifest, "files": {name: 1}}))
    with pytest.raises(ArchiveError, match=f"names '{name}' among its files"):
        Archive(str(tmp_path))


def test_a_lost_file_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, slices_of("A", [1]))
    (tmp_path / PART).unlink()
    with pytest.raises(ArchiveError, match=f"{PART}: there is no such file"):
        Archive(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not a Parquet file", b"PAR1" + bytes(20) + b"PAR1"])
def test_a_file_that_is_not_parquet_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, slices_of("A", [1]))
    (tmp_path / PART).write_bytes(content)
    with pytest.raises(ArchiveError, match=f"{PART}: not a readable Parquet file"):
        Archive(str(tmp_path))


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, slices_of("A", [1]))
    content = (tmp_path / PART).read_bytes()
    (tmp_path / PART).write_bytes(content[: len(content) // 2])
    with pytest.raises(ArchiveError, match=f"{PART}: not a readable Parquet file"):
        Archive(str(tmp_path))


@pytest.mark.parametrize(
    "column", [name for name in schema.ARCHIVE.names if name not in schema.ADDED_COLUMNS]
)
def test_a_missing_column_is_named_with_its_file(tmp_path: Path, column: str) -> None:
    write(tmp_path, slices_of("A", [1]))
    pq.write_table(pq.read_table(tmp_path / PART).drop_columns([column]), tmp_path / PART)
    with pytest.raises(ArchiveError, match=f"{PART}: column '{column}' is missing"):
        Archive(str(tmp_path))


def test_a_column_of_another_type_is_named_with_its_file(tmp_path: Path) -> None:
    write(tmp_path, slices_of("A", [1]))
    table = pq.read_table(tmp_path / PART)
    column = table.schema.get_field_index("height")
    pq.write_table(
        table.set_column(column, "height", table["height"].cast(pa.int64())), tmp_path / PART
    )
    with pytest.raises(ArchiveError, match=f"{PART}: column 'height' is int64, expected int32"):
        Archive(str(tmp_path))


@pytest.mark.parametrize("pieces", [1, 2])
def test_the_pixels_of_some_slices_are_theirs_in_one_piece_or_in_several(pieces: int) -> None:
    table = slices_of("A", [1, 2, 3, 4, 5, 6], size=(2, 3))
    if pieces == 2:
        table = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    pixels_nhwc = images(table.slice(2, 3)["pixels"], 2, 3, 3)
    assert pixels_nhwc.shape == (3, 2, 3, 3)
    assert [int(image_hwc.min()) for image_hwc in pixels_nhwc] == [3, 4, 5]
    assert [int(image_hwc.max()) for image_hwc in pixels_nhwc] == [3, 4, 5]
