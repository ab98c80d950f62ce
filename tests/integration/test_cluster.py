"""The cluster's configuration, and a job submitted to a real Ray head that demands a token."""

import contextlib
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from segmodel.core.errors import ConfigError
from segmodel.runtime import ray_cluster
from tests.conftest import PATIENTS, SIZE, SLICES
from tests.support import standin

ROOT = Path(__file__).parents[2]
START_SECONDS = 180


def page_faults_of_passes() -> int:
    """Page faults of passes whose layers give out 64 MiB each, after the first few."""
    found = []

    def infer() -> None:
        network = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU(), torch.nn.ReLU())
        x_nchw = torch.ones(4, 4, 1024, 1024)  # more than glibc ever keeps of its own accord
        with torch.inference_mode():
            for _ in range(16):
                network(x_nchw)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(4):
                network(x_nchw)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    thread = threading.Thread(target=infer)  # as actors compute in
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    ("nodes", "workers", "each"),
    [
        ([2], 1, 2),
        ([2], 3, 1),  # more than there is room for: they wait, or an elastic training takes fewer
        ([16, 16, 16], 1, 16),  # no node has 48
        ([16, 16, 16], 3, 16),
        ([16, 16, 16], 4, 8),
        ([4, 16], 2, 8),  # both on the larger one
        ([4, 16], 3, 5),
        ([], 2, 1),  # before the first node of a cluster that starts them when asked
    ],
)
def test_a_worker_gets_no_more_cpus_than_lets_all_of_them_find_a_node(
    monkeypatch: pytest.MonkeyPatch, nodes: list[int], workers: int, each: int
) -> None:
    alive = [{"Alive": True, "Resources": {"CPU": float(have)}} for have in nodes]
    others = [
        {"Alive": False, "Resources": {"CPU": 64.0}},
        {"Alive": True, "Resources": {"memory": 1.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: alive + others)
    assert ray_cluster.cpus_per_worker(workers) == each
    assert ray_cluster.default_workers(use_gpu=False) == (1, max(1, len(nodes)))


def test_more_workers_than_there_is_room_for_are_refused_unless_the_cluster_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster, "_cpus_of_nodes", lambda: [2, 1])
    monkeypatch.setattr(ray_cluster, "_resource", lambda name: 0.0)
    assert not ray_cluster.should_use_gpu(demand=False, forbid=False, workers=3)
    with pytest.raises(
        ConfigError, match="--workers: 4 workers need a CPU each, and this cluster has 3"
    ):
        ray_cluster.should_use_gpu(demand=False, forbid=False, workers=4)
    monkeypatch.setattr(ray_cluster, "_resource", lambda name: 1.0)
    assert ray_cluster.should_use_gpu(demand=False, forbid=False, workers=1)
    with pytest.raises(
        ConfigError, match="--workers: 2 workers need a GPU each, and this cluster has 1"
    ):
        ray_cluster.should_use_gpu(demand=False, forbid=False, workers=2)
    assert not ray_cluster.should_use_gpu(demand=False, forbid=True, workers=2)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert ray_cluster.should_use_gpu(demand=True, forbid=False, workers=100)


def test_a_worker_on_cpus_keeps_the_memory_of_one_pass_for_the_next(local_ray: None) -> None:
    pages = 4 * 3 * 2**26 // resource.getpagesize()
    assert ray.get(ray.remote(page_faults_of_passes).remote()) > pages / 2
    assert (
        ray.get(
            ray.remote(runtime_env=ray_cluster.KEEP_FREED_MEMORY)(page_faults_of_passes).remote()
        )
        < pages / 4
    )


def test_cluster_yaml_passes_rays_own_validation() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["min_workers"] == 0
    assert prepared["available_node_types"]["gpu"]["resources"]["GPU"] == 1
    assert "InstanceMarketOptions" not in prepared["available_node_types"]["head"]["node_config"]
    assert (ROOT / prepared["file_mounts"]["/home/ubuntu/requirements.lock"]).exists()


def test_a_cluster_that_is_dead_is_neither_joined_nor_spoken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert not ray_cluster._current_cluster_answers()  # there was none
    current = tmp_path / "ray" / "ray_current_cluster"
    current.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        current.write_text(f"127.0.0.1:{listener.getsockname()[1]}")
        assert ray_cluster._current_cluster_answers()
    assert not ray_cluster._current_cluster_answers()
    assert capfd.readouterr() == ("", "")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str], Path]]:
    """A `ray start --head` with a token: its dashboard's address, its environment, its folder."""
    port, folder = (
        free_port(),
        tempfile.mkdtemp(prefix="ray-", dir="/tmp"),
    )  # sockets need a short path
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # The job's `python` is the tested one.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    ray = str(Path(sys.executable).parent / "ray")
    process = subprocess.Popen(
        [
            ray,
            "start",
            "--head",
            "--block",
            f"--port={free_port()}",
            f"--dashboard-port={port}",
            "--num-cpus=2",
            f"--ray-client-server-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--temp-dir={folder}",
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{address}/api/version", environment["RAY_AUTH_TOKEN"]):
            assert process.poll() is None, process.stdout.read().decode() if process.stdout else ""
            assert time.monotonic() < deadline, "the dashboard did not start"
            time.sleep(0.5)
        yield address, environment, Path(folder)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def answers(url: str, token: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.timeout(500)
def test_a_submitted_job_segments_an_archive_and_uploads_little(
    phantom_archive: str, head: tuple[str, dict[str, str], Path], tmp_path: Path
) -> None:
    address, environment, folder = head
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/api/jobs/", timeout=10)
    assert refused.value.code == 401

    model = standin.save(str(tmp_path / "model"), SIZE)
    output = tmp_path / "run"
    ray = str(Path(sys.executable).parent / "ray")
    deadline = time.monotonic() + START_SECONDS
    while True:
        submitted = subprocess.run(
            [
                ray,
                "job",
                "submit",
                "--address",
                address,
                "--working-dir",
                ".",
                "--",
                "python",
                "-m",
                "jobs.segment",
                "--archive",
                phantom_archive,
                "--checkpoint",
                model,
                "--output",
                str(output),
            ],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        # The dashboard answers before the agent that starts jobs does: the head is not up yet.
        if (
            "No available agent to submit job" not in submitted.stderr
            or time.monotonic() > deadline
        ):
            break
        time.sleep(2)
    printed = submitted.stdout + submitted.stderr
    assert submitted.returncode == 0, printed
    assert (
        f"{PATIENTS * SLICES} of {PATIENTS * SLICES} slices segmented, 0 in quarantine" in printed
    )
    (uploaded,) = (
        path
        for path in folder.glob("session_latest/runtime_resources/working_dir_files/*")
        if path.is_dir()
    )
    assert (uploaded / "jobs" / "segment.py").exists()
    assert not (uploaded / ".venv").exists()
    assert sum(path.stat().st_size for path in uploaded.rglob("*") if path.is_file()) < 5e6
    assert (
        sum(pq.read_metadata(path).num_rows for path in (output / "masks").iterdir())
        == PATIENTS * SLICES
    )
    assert environment["RAY_AUTH_TOKEN"] not in printed
