from pathlib import Path

import pytest

from segmodel.segmentation import fingerprint
from segmodel.segmentation.fingerprint import with_precision


def test_the_precision_is_part_of_the_hash() -> None:
    short, long = (with_precision({"threshold": 0.5}, name) for name in ("bf16", "fp32"))
    assert (short["precision"], long["precision"]) == ("bf16", "fp32")
    assert short["sha256"] != long["sha256"]
    assert with_precision(short, "fp32") == long


def test_the_code_that_makes_masks_is_part_and_other_code_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "segmodel"
    for name in ("models/a.py", "inference/b.py", "data/c.py", "archive/slice_format.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x = 1\n")
    for name in (
        "core/mask_png.py",
        "runs/shard_reader.py",
        "segmentation/worker.py",
        "report/d.py",
    ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(fingerprint.segmodel, "__file__", str(package / "__init__.py"))
    before = fingerprint.code_sha256()
    (package / "report/d.py").write_text("x = 2\n")
    assert fingerprint.code_sha256() == before
    (package / "inference/b.py").write_text("x = 2\n")
    assert fingerprint.code_sha256() != before
