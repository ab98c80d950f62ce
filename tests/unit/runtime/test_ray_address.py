import socket
import time

import pytest

from segmodel.core.errors import ConfigError
from segmodel.runtime import ray_cluster


def test_a_dead_address_is_one_line_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
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


def test_an_address_that_answers_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ray_cluster._check_address(f"127.0.0.1:{server.getsockname()[1]}")
        ray_cluster._check_address(f"ray://127.0.0.1:{server.getsockname()[1]}")
