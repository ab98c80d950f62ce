"""What several test modules share: one local Ray, and one small phantom archive."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from segmodel import cluster
from segmodel.config import IngestConfig
from segmodel.ingestion import ingest

PATIENTS, SLICES, SIZE = 5, 80, 32


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A real Ray cluster on this machine, started once."""
    with cluster.connect():
        yield


@pytest.fixture(scope="session")
def phantom_archive(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five patients of 80 slices of 32x32 pixels: 400 slices, 7 row groups; patient 4 is healthy."""
    folder: Path = tmp_path_factory.mktemp("phantom") / "archive"
    config = IngestConfig(
        archive=str(folder),
        format="phantom",
        phantom_patients=PATIENTS,
        phantom_slices=SLICES,
        phantom_size=SIZE,
        tracking="none",
    )
    assert ingest(config).slices == PATIENTS * SLICES
    return str(folder)
