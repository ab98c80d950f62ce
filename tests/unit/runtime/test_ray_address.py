import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import grpc
import pytest
from ray.core.generated import gcs_service_pb2 as gcs
from ray.core.generated import ray_client_pb2 as client

from segmodel.core.errors import ConfigError
from segmodel.runtime import ray_cluster


def test_a_dead_address_is_one_line_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    # Another test of this process may have joined a cluster already.
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    started = time.monotonic()
    with (
        pytest.raises(ConfigError, match="no Ray cluster answers at RAY_ADDRESS=") as refused,
        ray_cluster.connect(),
    ):
        pytest.fail("connected to nothing")
    assert time.monotonic() - started < 10
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "head", "head:", "ray://head"])
def test_what_is_no_address_says_what_one_is(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        ray_cluster._check_address(address)


@contextmanager
def grpc_server(*methods: str, refuses: bool = False) -> Iterator[int]:
    """A gRPC server that knows these methods; gives its port."""

    def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
        if refuses:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    for method in methods:
        _, service, name = method.split("/")
        handlers = {name: grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None)


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize(
    ("scheme", "method"), [("", ray_cluster.RAY), ("ray://", ray_cluster.RAY_CLIENT)]
)
def test_an_address_where_a_cluster_answers_is_taken(
    scheme: str, method: str, refuses: bool
) -> None:
    with grpc_server(method, refuses=refuses) as port:
        ray_cluster._check_address(f"{scheme}127.0.0.1:{port}")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_server_that_speaks_grpc_and_is_not_ray_is_refused(scheme: str) -> None:
    with (
        grpc_server("/another.Service/Method") as port,
        pytest.raises(ConfigError, match="what listens there is not Ray"),
    ):
        ray_cluster._check_address(f"{scheme}127.0.0.1:{port}")


def test_ray_still_has_the_methods_that_it_is_asked_for() -> None:
    for method, module in ((ray_cluster.RAY, gcs), (ray_cluster.RAY_CLIENT, client)):
        _, service, name = method.split("/")
        services = module.DESCRIPTOR.services_by_name.values()
        (found,) = [one for one in services if one.full_name == service]
        assert name in found.methods_by_name


def test_a_port_where_something_else_listens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "CONNECT_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match="what listens there is not Ray"):
            ray_cluster._check_address(address)


def test_auto_without_a_cluster_on_this_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ConfigError, match="RAY_ADDRESS=auto"):
        ray_cluster._check_address("auto")


def test_without_a_usable_home_the_file_that_is_wanted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"file/.ray/auth_token.*set HOME"):
        ray_cluster._check_token_file()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    ray_cluster._check_token_file()


@pytest.mark.parametrize(
    ("answers", "told"), [(False, "starting Ray on this machine\n"), (True, "")]
)
def test_a_job_says_that_it_starts_ray_since_that_takes_seconds(
    answers: bool,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster, "_current_cluster_answers", lambda: answers)
    for way in ("_connection", "_local_cluster"):
        monkeypatch.setattr(ray_cluster, way, nullcontext)
    with ray_cluster.connect():
        pass
    assert capsys.readouterr().out == told
