"""Every node type of cluster.yaml against what the locked environment needs."""

import re
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "cluster.yaml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
NODES = CONFIG["available_node_types"]

GLIBC = {"20.04": (2, 31), "22.04": (2, 35), "24.04": (2, 39)}
"""C library of each Ubuntu."""
PYTHON = {"20.04": "3.8", "22.04": "3.10", "24.04": "3.12"}
LEAST_DRIVER = {"12": 525, "13": 580}
"""Oldest driver branch for a CUDA major version (NVIDIA's table of minor version compatibility)."""
MEMORY_GIB = {"m6i.2xlarge": 32, "g5.2xlarge": 32}
IMAGE_GB, ENVIRONMENT_GB = 75, 9


def ubuntu(node: str) -> str:
    """Release of the node's image, by its name."""
    found = re.search(r"ubuntu-(\d\d\.\d\d)", NODES[node]["node_config"]["ImageId"])
    assert found, "Ray's default image is an Ubuntu 18.04, on which nothing of the lock runs"
    return found[1]


def needed_glibc() -> tuple[int, int]:
    """The newest C library that an installed wheel asks for."""
    tags = re.findall(
        r"manylinux_2_(\d+)_x86_64",
        "".join(package.read_text("WHEEL") or "" for package in distributions()),
    )
    return (2, max(map(int, tags)))


@pytest.mark.parametrize("node", NODES)
def test_the_c_library_of_the_image_runs_the_locked_wheels(node: str) -> None:
    assert GLIBC[ubuntu(node)] >= needed_glibc() >= (2, 17)


@pytest.mark.parametrize("node", NODES)
def test_the_image_brings_a_python_that_the_project_takes(node: str) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (wanted,) = re.findall(r'requires-python = "([^"]+)"', project)
    python = PYTHON[ubuntu(node)]
    assert SpecifierSet(wanted).contains(f"{python}.0")
    assert any(f"--python {python} " in command for command in CONFIG["setup_commands"])


def test_a_driver_that_is_too_old_for_the_locked_cuda_fails_at_the_start() -> None:
    (major,) = set(re.findall(r"^cuda-toolkit==(\d+)\.", LOCK, re.MULTILINE))
    checks = [c for c in CONFIG["worker_setup_commands"] if "driver_version" in c]
    assert f"< {LEAST_DRIVER[major]} " in checks[0]


@pytest.mark.parametrize("node", NODES)
def test_the_disk_holds_image_and_environment_twice(node: str) -> None:
    (disk,) = NODES[node]["node_config"]["BlockDeviceMappings"]
    assert disk["Ebs"]["VolumeSize"] >= IMAGE_GB + 2 * ENVIRONMENT_GB


def test_the_head_has_memory_for_a_driver_and_ray() -> None:
    head = NODES[CONFIG["head_node_type"]]["node_config"]
    assert MEMORY_GIB[head["InstanceType"]] >= 32


def test_nothing_is_installed_into_the_system_s_python() -> None:
    commands = " ".join(CONFIG["setup_commands"])
    assert "--user" not in commands
    assert "pip install --quiet --require-hashes" in commands


def test_the_lock_holds_what_nodes_need_beside_the_jobs() -> None:
    # uv installs the lock on a node; Ray's head starts nodes with boto3.
    locked = {line.partition("==")[0] for line in LOCK.splitlines()}
    assert {"uv", "boto3"} <= locked


def test_every_file_that_a_node_installs_from_is_sent_to_it() -> None:
    used = set(re.findall(r"~/(\S+\.lock)", " ".join(CONFIG["setup_commands"])))
    assert used == {"requirements.lock"}
    assert CONFIG["file_mounts"]["/home/ubuntu/requirements.lock"] == "./requirements.lock"
