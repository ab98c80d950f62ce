from pathlib import Path

import pytest

from segmodel.archive.reader import Archive
from tests.support.small_archive import write_small_archive


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """400 slices in 7 row groups; 320 of them annotated."""
    return write_small_archive(tmp_path, {"A": 100, "B": 250, "C": 50})
