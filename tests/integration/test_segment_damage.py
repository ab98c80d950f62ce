"""jobs.segment on a real local Ray, with an archive that is damaged."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from jobs import segment
from segmodel.archive import writer as archive_writer
from tests.conftest import PATIENTS, SIZE, SLICES
from tests.support import scans, standin
from tests.support.phantom_segmentation import assert_equals_truth, command, masks

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return standin.save(
        str(tmp_path_factory.mktemp("model") / "best"), SIZE, training_patients=("PHANTOM_0002",)
    )


def test_damaged_slices_end_in_quarantine_and_in_the_exit_code(
    phantom_archive: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, output = tmp_path / "archive", tmp_path / "run"
    shutil.copytree(phantom_archive, archive)
    (part,) = scans.files(archive)
    table = pq.read_table(part)
    pixels = table["pixels"].to_pylist()
    pixels[5] = pixels[5][:-1]  # slice 6 of patient 1 lacks its last byte
    damaged = table.set_column(
        table.schema.get_field_index("pixels"), table.schema.field("pixels"), pa.array(pixels)
    )
    pq.write_table(damaged, part, row_group_size=64)

    assert segment.main([*command(str(archive), checkpoint, output), "--max-quarantined", "0"]) == 3
    assert "more than 0.0% of the slices are in quarantine" in capsys.readouterr().err
    assert (
        segment.main(command(str(archive), checkpoint, output)) == 0
    )  # 1 of 400 is within the default of 1 %
    (path,) = (output / "quarantine").glob("*.parquet")
    (row,) = pq.read_table(path).to_pylist()
    assert (row["slice_id"], row["stage"]) == ("PHANTOM_0001_6", "check")
    assert (
        row["reason"] == f"holds {SIZE * SIZE * 3 - 1} bytes in column 'pixels', "
        f"expected 32x32x3 = {SIZE * SIZE * 3}"
    )
    assert len(masks(output)) == PATIENTS * SLICES - 1
    first = pyarrow.csv.read_csv(output / "volumes.csv").to_pylist()[0]
    assert (first["slices"], first["slices_missing"]) == (SLICES - 1, 1)
    assert first["tumor_volume_ml"] is None
    assert first["volume_note"] == "1 missing slice"


def test_damaged_files_end_in_quarantine_and_are_done_once_they_are_whole_again(
    phantom_archive: str,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive, output = tmp_path / "archive", tmp_path / "run"
    monkeypatch.setattr(archive_writer, "FILE_SLICES", 1)
    table = pq.read_table(scans.files(phantom_archive)[0])
    scans.write(
        archive, *(table.slice(first, SLICES) for first in range(0, PATIENTS * SLICES, SLICES))
    )  # a file a patient
    whole = {path: path.read_bytes() for path in archive.glob("*.parquet")}
    parts = scans.files(archive)
    scans.flip_page(parts[1], 0, "pixels")  # slices 1 to 64 of patient 2
    scans.truncate(parts[4])  # all of patient 5

    assert segment.main(command(str(archive), checkpoint, output)) == 3
    printed = capsys.readouterr().out
    assert "80 slices to quarantine" in printed
    assert "256 of 400 slices segmented, 144 in quarantine, 4 patients" in printed
    rows = pq.read_table(output / "quarantine").to_pylist()
    assert sorted(row["slice_id"] for row in rows if row["stage"] == "read") == sorted(
        f"PHANTOM_0002_{n}" for n in range(1, 65)
    )
    assert [row["slice_id"] for row in rows if row["stage"] == "open"] == [None] * 80
    second = pyarrow.csv.read_csv(output / "volumes.csv").to_pylist()[1]
    assert (second["slices"], second["slices_missing"], second["tumor_volume_ml"]) == (16, 64, None)
    assert json.loads((output / "run.json").read_text())["slices_per_second"] > 0

    for path, content in whole.items():
        path.write_bytes(content)
    assert segment.main([*command(str(archive), checkpoint, output), "--retry-failed"]) == 0
    printed = capsys.readouterr().out
    # Of 10, each patient's 64 and 16 slices: the damaged one of patient 2, and both of patient 5.
    assert "3 of 10 shards done now" in printed
    assert "400 of 400 slices segmented, 0 in quarantine, 5 patients" in printed
    assert list((output / "quarantine").iterdir()) == []
    assert not (output / "lease.json").exists()
    assert_equals_truth(output, phantom_archive)
