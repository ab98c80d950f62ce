"""Nodes that join the tests' Ray cluster and die."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray

from tests.support.waiting import wait_for


def living_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


@contextlib.contextmanager
def second_node() -> Iterator[psutil.Process]:
    """Another raylet of the cluster, with one CPU, for as long as the block lasts."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1"]
    command.append(f"--address={ray.get_runtime_context().gcs_address}")
    environment = os.environ | {"RAY_AUTH_MODE": "token"}
    node = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: living_nodes() == 2, "the second node")
    (raylet,) = (
        child
        for child in psutil.Process(node.pid).children(recursive=True)
        if child.name() == "raylet"
    )
    try:
        yield raylet
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        # `ray start` named the cluster there: jobs of later tests would join it.
        (Path(os.environ["RAY_TMPDIR"]) / "ray" / "ray_current_cluster").unlink(missing_ok=True)
        wait_for(lambda: living_nodes() == 1, "the death of the second node to be noticed")
