"""From the settings of an ingest to its source."""

from pathlib import Path

import pytest

from segmodel.core.errors import ConfigError
from segmodel.settings.ingest import IngestConfig
from segmodel.sources.dicom_scan import hash_id
from segmodel.sources.registry import HASH_KEY, open_source
from tests.support.dicoms import series


def hashed(folder: Path) -> IngestConfig:
    return IngestConfig(archive="/a", format="dicom", source=str(folder), hash_ids=True)


def test_ids_are_hashed_with_the_secret_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series(tmp_path, "flair", [0.0, 5.0])
    monkeypatch.setenv(HASH_KEY, "0123456789abcdef")
    assert open_source(hashed(tmp_path)).patients() == [hash_id(b"0123456789abcdef", "P1")]


@pytest.mark.parametrize("secret", ["", "short"])
def test_without_a_secret_nothing_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv(HASH_KEY, secret)
    with pytest.raises(ConfigError, match=f"a secret of 16 characters or more in {HASH_KEY}"):
        open_source(hashed(tmp_path))
