"""Fixtures of tests on a real local Ray."""

import pytest

from segmodel.ingestion.driver import ingest
from segmodel.settings.ingest import IngestConfig
from tests.support.small_training import SIZE


@pytest.fixture(scope="session")
def training_archive(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five phantoms of 24 slices."""
    uri = str(tmp_path_factory.mktemp("phantom") / "archive")
    ingest(
        IngestConfig(
            archive=uri,
            format="phantom",
            phantom_patients=5,
            phantom_slices=24,
            phantom_size=SIZE,
            tracking="none",
        )
    )
    return uri
