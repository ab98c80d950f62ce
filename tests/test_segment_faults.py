"""jobs.segment on a real local Ray, with workers that die."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import segment
from segmodel import archivewriter, segmentation
from segmodel.crashes import DEATHS
from tests import deadly, scans, standin
from tests.conftest import SIZE

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return standin.save(str(tmp_path_factory.mktemp("model") / "best"), SIZE)


def marked(slices: pa.Table, row: int) -> pa.Table:
    """The same slices, one of them deadly."""
    pixels = slices["pixels"].to_pylist()
    pixels[row] = bytes([deadly.MARK]) + pixels[row][1:]
    column = slices.schema.get_field_index("pixels")
    return slices.set_column(column, slices.schema.field(column), pa.array(pixels, pa.binary()))


def test_a_slice_that_kills_its_worker_ends_in_quarantine_alone(
    phantom_archive: str, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(archivewriter, "ROW_GROUP_SLICES", 4)
    monkeypatch.setattr(segmentation, "SegmentShards", deadly.DeadlySegmentShards)
    archive, output = tmp_path / "archive", tmp_path / "run"
    slices = pq.read_table(Path(phantom_archive) / "part-00000.parquet").slice(0, 24)
    scans.write(archive, marked(slices, 9))
    flags = ["--archive", str(archive), "--checkpoint", checkpoint, "--output", str(output), "--tracking", "none"]
    assert segment.main([*flags, "--shard-slices", "12", "--max-quarantined", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "23 of 24 slices segmented, 1 in quarantine" in printed
    assert "shard part-00000-rows-00000-00003: its worker died; attempt 2" in printed
    assert "24 of 24 slices" in printed
    (row,) = pq.read_table(output / "quarantine").to_pylist()
    assert (row["slice_id"], row["stage"]) == ("PHANTOM_0001_10", "crash")
    assert f"killed {DEATHS} workers" in row["reason"]
    assert pq.read_table(output / "masks").num_rows == 23
