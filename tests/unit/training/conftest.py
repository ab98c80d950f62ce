import pytest

from segmodel.archive.reader import Archive
from tests.support.tiny_training import write_squares


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Patients A (16 slices) and B (5), each slice with a bright square."""
    return write_squares(str(tmp_path_factory.mktemp("squares")))
