"""Segmentations of the phantom archive, whose true masks are known."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from segmodel.core.mask_png import decode_mask
from tests.conftest import SIZE
from tests.support import scans


def command(archive: str, checkpoint: str, output: Path, *more: str) -> list[str]:
    where = ["--archive", archive, "--checkpoint", checkpoint, "--output", str(output)]
    return [*where, "--tracking", "none", "--shard-slices", "64", "--batch-size", "16", *more]


def truth(archive: str) -> dict[str, np.ndarray]:
    rows = pq.read_table(scans.files(archive)[0]).to_pylist()
    return {
        row["slice_id"]: np.frombuffer(row["mask"], np.uint8).reshape(SIZE, SIZE) > 0
        for row in rows
    }


def masks(output: Path) -> list[dict]:
    return [
        row
        for path in sorted((output / "masks").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def assert_equals_truth(output: Path, archive: str) -> None:
    rows, expected = masks(output), truth(archive)
    assert sorted(row["slice_id"] for row in rows) == sorted(expected)  # each exactly once
    for row in rows:
        assert (decode_mask(row["mask"]) == expected[row["slice_id"]]).all(), row["slice_id"]
