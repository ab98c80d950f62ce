import shutil
from pathlib import Path

import pytest

from segmodel.segmentation import fingerprint


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of segmodel's modules that may be changed."""
    original = Path(fingerprint.segmodel.__file__).parent
    only = shutil.ignore_patterns("__pycache__")
    copy = shutil.copytree(original, tmp_path / "segmodel", ignore=only)
    monkeypatch.setattr(fingerprint.segmodel, "__file__", str(copy / "__init__.py"))
    return Path(copy)


@pytest.mark.parametrize(
    ("module", "decides"),
    [
        ("models/unet.py", True),
        ("models/registry.py", True),
        ("inference/predictor.py", True),
        ("data/preprocessing.py", True),  # scales and pads what goes into the network
        ("archive/slice_format.py", True),
        ("core/mask_png.py", True),
        ("runs/shard_reader.py", True),
        ("segmentation/worker.py", True),
        ("models/cost.py", False),
        ("models/pretrained.py", False),
        ("data/dataset.py", False),
        ("data/sampling.py", False),
        ("data/augmentation.py", False),
        ("data/splits.py", False),
        ("analysis/review.py", False),
        ("report/segmentation_page.py", False),
        ("segmentation/driver.py", False),
    ],
)
def test_code_that_decides_a_mask_is_part_and_a_comment_elsewhere_is_not(
    package: Path, module: str, decides: bool
) -> None:
    before = fingerprint.code_sha256()
    with (package / module).open("a") as file:
        file.write("# a comment\n")
    assert (fingerprint.code_sha256() != before) == decides
