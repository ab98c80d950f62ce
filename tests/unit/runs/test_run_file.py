import json
from dataclasses import asdict, replace
from pathlib import Path

from segmodel.runs import run_file
from segmodel.runs.run_file import ArchiveFile, Counts
from tests.support.segmented import WANTED, new_run


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    counts = Counts(slices=4, segmented=2, quarantined=1, blank=1, patients=1, shards=1)
    written = replace(
        new_run(),
        files={"a.parquet": ArchiveFile(slices=4, bytes=100)},
        settings={"threshold": 0.5, "tta": False},
        counts=counts,
        slices_per_second=2.5,
        finished="later",
        summary={"keep_largest": True, "min_volume_ml": None},
    )
    run_file.write(str(tmp_path), written)
    assert run_file.read(str(tmp_path)) == written
    values = json.loads((tmp_path / "run.json").read_text())
    assert values["files"] == {"a.parquet": {"slices": 4, "bytes": 100}}
    assert values["fingerprint"] == {**asdict(WANTED), "sha256": WANTED.sha256}


def test_a_run_that_has_just_begun_has_no_summary_yet_and_may_lack_the_key(tmp_path: Path) -> None:
    values = new_run().to_json()
    del values["summary"]
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert run_file.read(str(tmp_path)).summary is None


def test_the_hash_of_a_fingerprint_covers_every_part() -> None:
    hashes = {WANTED.sha256}
    for name, value in asdict(WANTED).items():
        other = "another" if value is None or isinstance(value, str) else value * 2
        hashes.add(replace(WANTED, **{name: other}).sha256)
    assert len(hashes) == 1 + len(asdict(WANTED))
