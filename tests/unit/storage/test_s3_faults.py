"""The real clients of S3 against a real HTTP server that answers badly for a while."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from botocore.exceptions import NoCredentialsError
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server, make_ssl_devcert

from segmodel.core.errors import ConfigError
from segmodel.storage import parquet_recovery, s3, store
from tests.support.flaky import FlakyProxy

FAULTS = ("503", "500", "drop", "reset", "stall")
TABLE = pa.table({"n": list(range(1000))})


@pytest.fixture
def proxy(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """The way to S3 for the clients of this process."""
    address = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    proxy = FlakyProxy(str(address.hostname), int(address.port or 0))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(s3, "TIMEOUT_S", 0.5)
    forget_clients()
    yield proxy
    forget_clients()
    proxy.close()


def forget_clients() -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    s3._aws.cache_clear()
    s3._arrow_filesystem.cache_clear()
    s3._region_of.cache_clear()


@pytest.fixture
def fresh_clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients that read the environment anew; those of later tests, too."""
    forget_clients()
    monkeypatch.setattr(
        s3, "_attempts", 2
    )  # an earlier test may have begun a job, which is patient
    yield
    forget_clients()


def write_and_read(uri: str) -> None:
    """With s3fs, and back with pyarrow's own client."""
    store.publish_table(uri, TABLE)
    with store.open_parquet(uri) as file:
        assert file.read().equals(TABLE)


def test_a_server_with_the_hospitals_own_certificate_is_reached(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    certificate, key = make_ssl_devcert(str(tmp_path / "own"), host="localhost")
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server(
        "localhost",
        0,
        app,
        threaded=True,
        ssl_context=(certificate, key),
        request_handler=MotoRequestHandler,
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{server.server_port}")
    with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        store.publish_table(f"{s3_bucket}/own.parquet", TABLE)
    monkeypatch.setenv("AWS_CA_BUNDLE", certificate)
    forget_clients()
    write_and_read(f"{s3_bucket}/own.parquet")
    server.shutdown()


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_server_behind_a_proxy_is_reached(
    proxy: FlakyProxy,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    fresh_clients: None,
    scheme: str,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://10.255.255.1:9000")
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", scheme))
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    write_and_read(f"{s3_bucket}/behind.parquet")


def test_a_proxy_that_pyarrow_does_not_take_is_no_damage_to_a_file_and_not_printed(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    store.publish_table(f"{s3_bucket}/there.parquet", TABLE)
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret#1@proxy.hospital.invalid:8080")
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ConfigError, match="HTTPS_PROXY and HTTP_PROXY must be http://host:port"
    ) as caught:
        parquet_recovery.read_row_groups(f"{s3_bucket}/there.parquet", [0], ["n"])
    assert "secret" not in str(caught.value)


def endpoint_and_region(bucket: str) -> tuple[str, str]:
    """Of pyarrow's client."""
    made = s3.arrow_filesystem(bucket).__reduce__()[1][0]
    return made["endpoint_override"], made["region"]


def test_amazons_usual_endpoint_is_asked_in_the_buckets_region_and_others_as_named(
    s3_bucket: str, fresh_clients: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = s3._aws()
    client.create_bucket(
        Bucket="far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    assert s3._region_of("far") == "eu-west-1"
    with pytest.raises(LookupError):  # moto does not say
        s3._region_of("not-there")

    with monkeypatch.context() as patch:
        patch.setattr(s3, "_region_of", lambda bucket: "eu-west-1")
        patch.delenv("AWS_ENDPOINT_URL")
        s3._aws.cache_clear()
        assert endpoint_and_region("far") == ("", "eu-west-1")
        patch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
        s3._aws.cache_clear()
        assert endpoint_and_region("far") == (
            "https://s3-fips.us-east-1.amazonaws.com",
            "us-east-1",
        )
        patch.delenv("AWS_USE_FIPS_ENDPOINT")
        within = "https://bucket.vpce-1a2b3c4d-5e6f.s3.us-east-1.vpce.amazonaws.com"
        patch.setenv("AWS_ENDPOINT_URL", within)
        s3._aws.cache_clear()
        assert endpoint_and_region("far") == (within, "us-east-1")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_for_a_while_is_done_all_the_same(
    proxy: FlakyProxy, s3_bucket: str, fault: str
) -> None:
    uri = store.join(s3_bucket, "flaky", f"{fault}.parquet")

    def troubled() -> None:
        assert proxy.faults == []  # those of the step before were met
        proxy.faults = [fault] * 2

    troubled()
    store.publish_table(uri, TABLE)
    troubled()
    assert store.list_files(store.join(s3_bucket, "flaky"))[-1:] != []
    troubled()
    assert len(store.read_bytes(uri)) > 1000
    troubled()
    with store.open_parquet(uri) as file:
        assert file.read().equals(TABLE)
    assert proxy.met == 8


@pytest.mark.parametrize("read", [store.read_bytes, store.open_parquet])
def test_a_lasting_failure_is_an_error_with_the_file_unless_the_job_has_begun(
    proxy: FlakyProxy,
    s3_bucket: str,
    read: Callable[[str], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = store.join(s3_bucket, "flaky", "file.parquet")
    store.publish_table(uri, TABLE)
    monkeypatch.setattr(s3, "_attempts", 2)
    proxy.faults = ["503"] * 10
    with pytest.raises(OSError, match=r"flaky/file\.parquet"):
        read(uri)
    assert len(proxy.faults) == 8
    proxy.faults = ["503"] * 3
    s3.retry_for_minutes()
    read(uri)


def test_a_file_that_is_not_there_is_asked_for_once(proxy: FlakyProxy, s3_bucket: str) -> None:
    with pytest.raises(FileNotFoundError):
        store.read_bytes(store.join(s3_bucket, "flaky", "nothing"))


@pytest.mark.parametrize("read", [store.read_bytes, store.open_parquet])
def test_credentials_that_have_expired_are_an_error_at_once(
    proxy: FlakyProxy, s3_bucket: str, read: Callable[[str], object]
) -> None:
    uri = store.join(s3_bucket, "flaky", "file.parquet")
    store.publish_table(uri, TABLE)
    proxy.faults = ["403"] * 10
    with pytest.raises(OSError, match=r"Forbidden|ExpiredToken|ACCESS_DENIED|403"):
        read(uri)
    assert len(proxy.faults) >= 8


def test_what_s3_refuses_is_named(s3_bucket: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"s3://no-such-bucket/a\.json: .*bucket does not exist"
    ):
        store.publish_json("s3://no-such-bucket/a.json", {})
    with pytest.raises(FileNotFoundError, match=f"{s3_bucket}/nothing"):
        store.read_bytes(f"{s3_bucket}/nothing")


def test_only_the_row_groups_and_columns_that_are_asked_for_are_fetched(
    proxy: FlakyProxy, s3_bucket: str
) -> None:
    noise = np.random.default_rng(0).bytes(1_000_000)
    table = pa.table({"wanted": [noise[:500_000], noise[500_000:]] * 2, "other": [noise] * 4})
    content = pa.BufferOutputStream()
    pq.write_table(table, content, row_group_size=1, use_dictionary=False, write_statistics=False)
    uri = store.join(s3_bucket, "flaky", "groups.parquet")
    store.publish(uri, content.getvalue().to_pybytes())
    proxy.bytes_sent = 0
    with store.open_parquet(uri) as file:
        assert file.read_row_group(2, columns=["wanted"]) == table.slice(2, 1).select(["wanted"])
    assert 500_000 < proxy.bytes_sent < 600_000  # of 6 million


def test_a_listing_goes_on_after_its_first_thousand(s3_bucket: str) -> None:
    names = [f"{number:04d}.parquet" for number in range(1_001)]
    for name in names:  # behind the server's back, in a tenth of the time
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(
            s3_bucket.removeprefix("s3://"), f"many/{name}", b""
        )
    assert store.list_files(store.join(s3_bucket, "many"), ".parquet") == names


def test_missing_credentials_are_an_error_that_says_what_to_set() -> None:
    @s3.with_os_errors
    def read(uri: str) -> None:
        raise NoCredentialsError

    with pytest.raises(ConnectionError, match=r"^s3://b/x: .*set AWS_ACCESS_KEY_ID"):
        read("s3://b/x")
