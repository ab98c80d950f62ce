"""What a segmentation gets of a damaged shard."""

import contextlib
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmodel.archive import slice_file
from segmodel.archive.reader import Archive, Shard
from segmodel.core import schema
from segmodel.core.errors import ArchiveError
from segmodel.runs.shard_reader import quarantine_rows, read_usable_slices
from segmodel.storage import store
from tests.support.scans import flip_page, scans, truncate, write

PART = "slices-000000000001-00000.parquet"
WHOLE = Shard(PART, 0, 3, 6, first_patient="A", last_patient="B")
Row = dict[str, object]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered_ingests: None) -> Path:
    """Slices A_1 to A_3 and B_1 to B_3 in row groups of two."""
    monkeypatch.setattr(slice_file, "ROW_GROUP_SLICES", 2)
    write(tmp_path, scans("A", 3), scans("B", 3))
    return tmp_path


def read(folder: Path) -> tuple[list[str], list[Row]]:
    """Ids of the usable slices, and the quarantine."""
    table, quarantine = read_usable_slices(str(folder), WHOLE, channels=3)
    assert quarantine.schema == schema.QUARANTINE
    expected = pa.concat_tables([scans("A", 3), scans("B", 3)]).drop_columns(
        ["mask", "source_uri", "sop_instance_uid"]
    )
    for row in table.to_pylist():
        assert row in expected.to_pylist()  # what is given out is what was written, to the byte
    return table["slice_id"].to_pylist(), quarantine.to_pylist()


def test_a_whole_shard_is_given_in_its_order_and_nothing_is_quarantined(folder: Path) -> None:
    assert read(folder) == (["A_1", "A_2", "A_3", "B_1", "B_2", "B_3"], [])


@pytest.mark.parametrize("column", ["pixels", "height", "row_spacing_mm"])
def test_a_row_group_with_a_damaged_page_alone_is_quarantined_with_its_ids(
    folder: Path, column: str
) -> None:
    flip_page(folder / PART, 1, column)
    usable, quarantine = read(folder)
    assert usable == ["A_1", "A_2", "B_2", "B_3"]
    assert [
        (row["slice_id"], row["patient_id"], row["slice_index"], row["stage"]) for row in quarantine
    ] == [
        ("A_3", "A", 3, "read"),
        ("B_1", "B", 1, "read"),
    ]
    assert all(f"{PART}: row group 1 cannot be read (" in str(row["reason"]) for row in quarantine)


@pytest.mark.parametrize("column", ["mask", "source_uri"])
def test_what_a_segmentation_does_not_need_may_be_damaged(folder: Path, column: str) -> None:
    flip_page(folder / PART, 1, column)
    assert read(folder) == (["A_1", "A_2", "A_3", "B_1", "B_2", "B_3"], [])


def test_the_footer_names_the_outermost_patients_of_a_row_group_without_ids(
    folder: Path,
) -> None:
    flip_page(folder / PART, 1, "slice_id")
    usable, quarantine = read(folder)
    assert usable == ["A_1", "A_2", "B_2", "B_3"]
    assert [(row["slice_id"], row["patient_id"]) for row in quarantine] == [
        (None, "A"),
        (None, "B"),
    ]


def test_all_slices_of_a_row_group_of_one_patient_are_known_to_be_that_patients(
    folder: Path,
) -> None:
    flip_page(folder / PART, 2, "patient_id")
    usable, quarantine = read(folder)
    assert usable == ["A_1", "A_2", "A_3", "B_1"]
    assert [(row["slice_id"], row["patient_id"]) for row in quarantine] == [
        (None, "B"),
        (None, "B"),
    ]


def shrink(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(0, 5), path, row_group_size=2)


@pytest.mark.parametrize("how", [truncate, Path.unlink, shrink])
def test_a_file_that_broke_since_planning_is_quarantined_with_its_outermost_patients(
    folder: Path, how: Callable[[Path], None]
) -> None:
    (shard,) = Archive(str(folder)).shards(6)
    assert shard == WHOLE
    how(folder / PART)
    usable, quarantine = read(folder)
    assert usable == []
    assert [(row["slice_id"], row["stage"]) for row in quarantine] == [(None, "open")] * 6
    assert [row["patient_id"] for row in quarantine] == ["A", None, None, None, None, "B"]
    assert PART in str(quarantine[0]["reason"])


def replace_pixels(folder: Path, row: int, pixels: bytes) -> None:
    table = pq.read_table(folder / PART)
    values = table["pixels"].to_pylist()
    values[row] = pixels
    number = table.schema.get_field_index("pixels")
    pq.write_table(
        table.set_column(number, table.schema.field("pixels"), pa.array(values)),
        folder / PART,
        row_group_size=2,
    )


@pytest.mark.parametrize(
    ("pixels", "stage", "reason"),
    [
        (bytes(48), "blank", "all its pixels are equal"),
        (
            bytes([10, 20, 30]) * 16,
            "blank",
            "all its pixels are equal",
        ),  # each channel its own value
        (bytes(47), "check", "holds 47 bytes in column 'pixels', expected 4x4x3 = 48"),
        (bytes(4800), "check", "holds 4800 bytes in column 'pixels', expected 4x4x3 = 48"),
        (b"", "check", "holds 0 bytes in column 'pixels', expected 4x4x3 = 48"),
    ],
)
def test_a_slice_with_impossible_pixels_is_quarantined_alone(
    folder: Path, pixels: bytes, stage: str, reason: str
) -> None:
    replace_pixels(folder, 3, pixels)
    usable, quarantine = read(folder)
    assert usable == ["A_1", "A_2", "A_3", "B_2", "B_3"]
    assert quarantine == [
        {
            "slice_id": "B_1",
            "patient_id": "B",
            "series_id": "B",
            "slice_index": 1,
            "stage": stage,
            "reason": reason,
        }
    ]


def test_an_image_that_differs_in_one_pixel_is_used(folder: Path) -> None:
    replace_pixels(folder, 0, bytes(24) + b"\1" + bytes(23))
    table, quarantine = read_usable_slices(str(folder), WHOLE, channels=3)
    assert (table.num_rows, quarantine.num_rows) == (6, 0)


def test_a_store_that_does_not_answer_is_not_taken_for_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_page(folder / PART, 1, "pixels")

    def silent(uri: str) -> bytes:
        raise TimeoutError("no answer")

    monkeypatch.setattr(store, "is_local", lambda uri: False)
    monkeypatch.setattr(store, "read_bytes", silent)
    with pytest.raises(TimeoutError, match="no answer"):
        read(folder)


class BadSector(io.BytesIO):
    """A file with one unreadable byte, except in the first read, which takes it whole."""

    def __init__(self, content: bytes, position: int, number: int) -> None:
        super().__init__(content)
        self.position, self.number = position, number

    def read(self, size: int | None = -1) -> bytes:
        start = self.tell()
        found = super().read(size)
        if 0 < start <= self.position < self.tell():
            raise OSError(self.number, os.strerror(self.number))
        return found


def break_disk(
    monkeypatch: pytest.MonkeyPatch, folder: Path, row_group: int, column: str, number: int
) -> None:
    """Let the reading of the first byte of a column chunk fail with an error of this number."""
    chunk = (
        pq.read_metadata(folder / PART)
        .row_group(row_group)
        .column(schema.ARCHIVE.get_field_index(column))
    )
    start = chunk.dictionary_page_offset or chunk.data_page_offset

    def open_parquet(uri: str) -> pq.ParquetFile:
        return pq.ParquetFile(
            BadSector(Path(uri).read_bytes(), start, number), page_checksum_verification=True
        )

    monkeypatch.setattr(store, "open_parquet", open_parquet)


@pytest.mark.parametrize(
    ("column", "ids"), [("pixels", ["A_3", "B_1"]), ("slice_id", [None, None])]
)
def test_a_bad_sector_of_a_local_disk_costs_its_row_group(
    folder: Path, monkeypatch: pytest.MonkeyPatch, column: str, ids: list[str | None]
) -> None:
    break_disk(monkeypatch, folder, 1, column, errno.EIO)
    usable, quarantine = read(folder)
    assert usable == ["A_1", "A_2", "B_2", "B_3"]
    assert [(row["slice_id"], row["patient_id"], row["stage"]) for row in quarantine] == [
        (ids[0], "A", "read"),
        (ids[1], "B", "read"),
    ]
    assert "Input/output error" in str(quarantine[0]["reason"])


def test_a_bad_sector_in_ids_does_not_keep_the_archive_from_being_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_disk(monkeypatch, folder, 1, "slice_id", errno.EIO)
    assert Archive(str(folder), skip_damaged=True).index()["slice_id"].to_pylist() == [
        "A_1",
        "A_2",
        "B_2",
        "B_3",
    ]


def test_a_disk_that_may_answer_later_is_not_taken_for_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_disk(monkeypatch, folder, 1, "pixels", errno.ESTALE)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        read(folder)


def test_a_flipped_bit_in_the_pages_is_never_a_wrong_pixel_or_a_lost_slice(
    folder: Path,
) -> None:
    content = (folder / PART).read_bytes()
    end = (
        len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    )  # of the pages; then the footer comes
    for position in range(4, end, 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        (folder / PART).write_bytes(bytes(damaged))
        usable, quarantine = read(folder)  # which compares the usable ones with what was written
        assert len(usable) + len(quarantine) == 6, position


def test_one_flipped_bit_in_the_footer_loses_no_slice_and_is_no_error_without_a_name(
    folder: Path,
) -> None:
    content = (folder / PART).read_bytes()
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for position in range(end, len(content), 5):
        damaged = bytearray(content)
        damaged[position] ^= 0x80
        (folder / PART).write_bytes(bytes(damaged))
        table, quarantine = read_usable_slices(str(folder), WHOLE, channels=3)
        assert table.num_rows + quarantine.num_rows == 6, position
        with contextlib.suppress(ArchiveError):  # of a file that is set aside, and the only one
            Archive(str(folder), skip_damaged=True).index()


def test_two_slices_of_an_archive_with_over_two_gib_of_pixels_are_quarantined() -> None:
    pixels = pa.Array.from_buffers(
        pa.binary(),
        1,
        [
            None,
            pa.py_buffer(np.array([0, 2**30], np.int32)),
            pa.py_buffer(np.zeros(2**30, np.uint8)),
        ],
    )
    keys = scans("A", 3).drop_columns(["pixels"])
    table = keys.append_column("pixels", pa.chunked_array([pixels] * 3))
    assert quarantine_rows(table, [0, 2], "check", ["bad", "worse"])["slice_id"].to_pylist() == [
        "A_1",
        "A_3",
    ]


def test_the_archive_lists_such_slices_as_unreadable_and_the_rest_as_it_is(folder: Path) -> None:
    flip_page(folder / PART, 1, "slice_id")
    assert Archive(str(folder), skip_damaged=True).index()["slice_id"].to_pylist() == [
        "A_1",
        "A_2",
        "B_2",
        "B_3",
    ]
