"""What several test modules share: one local Ray, and one small phantom archive."""

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from segmodel.archive import manifest
from segmodel.ingestion.driver import ingest
from segmodel.runtime import ray_cluster
from segmodel.settings.ingest import IngestConfig

PATIENTS, SLICES, SIZE = 5, 80, 32


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what tests/integration holds: everything that starts Ray."""
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker("integration")


@pytest.fixture
def numbered_ingests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the first ingest are `slices-000000000001-00000.parquet` and so on."""
    numbers = itertools.count(1)
    monkeypatch.setattr(manifest, "new_ingest_id", lambda: f"{next(numbers):012d}")


@pytest.fixture(scope="session", autouse=True)
def ray_folder() -> Iterator[Path]:
    """Ray's folder for the tests: deleted afterwards, and without a cluster of the user."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets need a short path
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """An empty bucket of an S3 server on this machine; the AWS environment points there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="mri")
        yield "s3://mri"
    server.stop()


@pytest.fixture(scope="session")
def local_ray(s3_bucket: str, ray_folder: Path) -> Iterator[None]:
    """A real Ray cluster on this machine, started once, whose workers know the S3 server.

    It checks its nodes twice a second, not every three seconds, because tests wait for it to notice
    a dead one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_health_check_period_ms", "500")
        with ray_cluster.connect():
            yield


@pytest.fixture(scope="session")
def phantom_archive(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five patients with 80 slices of 32x32 pixels: 7 row groups; patient 4 is healthy."""
    folder: Path = tmp_path_factory.mktemp("phantom") / "archive"
    config = IngestConfig(
        archive=str(folder),
        format="phantom",
        phantom_patients=PATIENTS,
        phantom_slices=SLICES,
        phantom_size=SIZE,
        tracking="none",
    )
    assert ingest(config).archive.slices == PATIENTS * SLICES
    return str(folder)
