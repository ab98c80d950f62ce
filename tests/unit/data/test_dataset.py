import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from segmodel.archive.annotations import find_annotated
from segmodel.archive.reader import Archive
from segmodel.core import schema
from segmodel.core.errors import ArchiveError
from segmodel.data.dataset import Bytes, SliceDataset
from segmodel.data.sampling import shuffle
from tests.support.archive_writer import ArchiveWriter
from tests.support.small_archive import write_small_archive


def test_the_annotated_slices_of_each_patient_are_found(archive: Archive) -> None:
    rows = find_annotated(archive, mixed_sizes=False)
    assert rows.counts() == {"A": 80, "B": 200, "C": 40}
    assert rows.of(["C", "A"]).counts() == {"A": 80, "C": 40}
    assert len(rows.of(["B"])) == 200


def test_a_batch_holds_the_slices_that_were_asked_for(archive: Archive) -> None:
    slices = SliceDataset(
        archive, find_annotated(archive, mixed_sizes=False).of(["A", "C"]), image_size=2
    )
    pixels, mask, indices = slices[[81, 3, 4]]
    # A has the numbers 0 to 99 without 4, 9, …: index 4 is number 5. C begins with number 350:
    # index 81 is its second slice.
    assert pixels[:, 0, 0, 0].tolist() == [351 % 256, 3, 5]
    assert pixels.shape == (3, 2, 2, 2)
    assert mask.shape == (3, 2, 2)
    assert int(mask.min()) == 1
    assert indices.tolist() == [81, 3, 4]


def test_streaming_gives_the_same_slices_and_keeps_few_row_groups(archive: Archive) -> None:
    rows = find_annotated(archive, mixed_sizes=False)
    whole, streamed = (
        SliceDataset(archive, rows, 2),
        SliceDataset(archive, rows, 2, cached_groups=3),
    )
    for start in range(0, 320, 32):
        batch = list(range(start, start + 32))
        assert all(torch.equal(a, b) for a, b in zip(whole[batch], streamed[batch], strict=True))
        assert len(streamed._cache) <= 3
    assert len(whole._cache) == 7


def test_a_streamed_epoch_reads_each_row_group_once_and_holds_each_slice_once(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = find_annotated(archive, mixed_sizes=False)
    streamed = SliceDataset(archive, rows, 2, cached_groups=4)
    read: list[int] = []
    original = streamed._read

    def recorded(number: int) -> tuple[Bytes, Bytes]:
        read.append(number)
        return original(number)

    monkeypatch.setattr(streamed, "_read", recorded)
    order = shuffle(np.arange(320), rows.shard_n, 1, cached_groups=4).tolist()
    for index in order:
        streamed[[index]]
    assert sorted(order) == list(range(320))
    assert sorted(read) == list(range(7))
    assert order != shuffle(np.arange(320), rows.shard_n, 2, cached_groups=4).tolist()
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(order))
    assert neighbours < 20  # shuffled within the row groups that are kept, too


def test_slices_are_scaled_to_the_image_size_and_padded(tmp_path: Path) -> None:
    archive = write_small_archive(tmp_path, {"A": 2}, height=8, width=4)
    slices = SliceDataset(archive, find_annotated(archive, mixed_sizes=False), image_size=4)
    pixels, mask, _ = slices[[1]]
    assert pixels.shape == (1, 4, 4, 2)
    assert pixels[0, :, :, 0].tolist() == [[1, 1, 0, 0]] * 4
    assert mask[0].tolist() == [[1, 1, 0, 0]] * 4


def test_statistics_are_those_of_each_channel(tmp_path: Path) -> None:
    archive = write_small_archive(tmp_path, {"A": 2})  # values 0 and 1 of 255
    statistics = SliceDataset(archive, find_annotated(archive, mixed_sizes=False), 2).statistics()
    assert statistics.mean == pytest.approx((0.5 / 255, 0.0))
    assert statistics.std == pytest.approx(
        (0.5 / 255, 1.0)
    )  # a constant channel is not divided by zero


def test_a_mask_with_other_values_than_0_and_1_is_refused(tmp_path: Path) -> None:
    archive = write_small_archive(tmp_path, {"A": 2}, mask_value=255)
    with pytest.raises(ArchiveError, match="the mask of slice 'A_001' holds 255, expected 0 and 1"):
        find_annotated(archive, mixed_sizes=False)


def test_an_archive_without_masks_is_refused(tmp_path: Path) -> None:
    with ArchiveWriter(
        str(tmp_path), source="test", channels=("a",), intensity_scaling="none", overwrite=False
    ) as writer:
        writer.close()
    with pytest.raises(ArchiveError, match="no slice has a mask"):
        find_annotated(Archive(str(tmp_path)), mixed_sizes=False)


def test_a_slice_with_a_wrong_number_of_bytes_is_refused_with_its_file(tmp_path: Path) -> None:
    archive = write_small_archive(tmp_path, {"A": 2})
    (part,) = tmp_path.glob("slices-*.parquet")
    table = pq.read_table(part)
    pixels = pa.array([bytes(8), bytes(7)], pa.binary())
    pq.write_table(table.set_column(table.schema.get_field_index("pixels"), "pixels", pixels), part)
    slices = SliceDataset(archive, find_annotated(archive, mixed_sizes=False), 2)
    with pytest.raises(
        ArchiveError,
        match=f"{part}: slice 'A_002' holds 7 bytes in column 'pixels', "
        "expected 2x2x2 = 8; ingest this patient again",
    ):
        slices.load()


def test_mixed_sizes_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    with ArchiveWriter(
        str(tmp_path), source="test", channels=("a",), intensity_scaling="none", overwrite=False
    ) as writer:
        for patient, side in (("A", 2), ("B", 4)):
            row = {
                "slice_id": patient,
                "patient_id": patient,
                "series_id": patient,
                "slice_index": 1,
                "height": side,
                "width": side,
                "pixels": bytes(side * side),
                "mask": bytes(side * side),
                "source_uri": "",
            }
            writer.append(
                pa.Table.from_pylist([row], schema=schema.ARCHIVE), schema.REJECTS.empty_table()
            )
        writer.close()
    archive = Archive(str(tmp_path))
    with pytest.raises(
        ArchiveError, match=r"slices of 2 sizes: 'A' is 2x2 pixels, 'B' 4x4; give --mixed-sizes"
    ):
        find_annotated(archive, mixed_sizes=False)
    assert len(find_annotated(archive, mixed_sizes=True)) == 2
