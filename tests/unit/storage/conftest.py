from pathlib import Path

import pytest

from segmodel.storage import store


@pytest.fixture(params=["local", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on this machine's disk, and one on S3."""
    if request.param == "local":
        return str(tmp_path / "folder")
    return store.join(request.getfixturevalue("s3_bucket"), "storage", tmp_path.name)
