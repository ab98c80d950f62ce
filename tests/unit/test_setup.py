"""What `make` does on the first call, and what the lock may hold."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

PYTHON_OF_SOME_VERSION = """#!/bin/sh
if [ "$1" = -m ]; then  # -m venv FOLDER
    mkdir -p "$3/bin"
    printf '#!/bin/sh\\n' > "$3/bin/python"
    printf '#!/bin/sh\\necho "$@" >> called\\nmkdir -p .venv\\n' > "$3/bin/uv"
    chmod +x "$3/bin/python" "$3/bin/uv"
else  # -c CODE
    exec {real} -c "
import sys
sys.version_info, sys.executable = {version}, '/usr/bin/mine'
exec(sys.argv[1])" "$2"
fi
"""


def uv_calls_of_make(folder: Path, version: tuple[int, int, int]) -> list[str]:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    python = folder / "python"
    python.write_text(PYTHON_OF_SOME_VERSION.format(real=sys.executable, version=version))
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", ".venv/.installed"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    assert (folder / ".venv" / ".installed").exists()
    return (folder / "called").read_text().splitlines()


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_make_sets_up_with_the_python_that_is_there(tmp_path: Path, minor: int) -> None:
    calls = uv_calls_of_make(tmp_path, (3, minor, 1))
    assert calls[0] == "venv --allow-existing --python /usr/bin/mine .venv"
    assert "--require-hashes requirements.lock" in calls[1]


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0)])
def test_make_lets_uv_bring_a_python_where_there_is_none_that_fits(
    tmp_path: Path, version: tuple[int, int, int]
) -> None:
    assert (
        uv_calls_of_make(tmp_path, version)[0]
        == "venv --allow-existing --python >=3.11,<3.14 .venv"
    )


def test_the_package_names_the_same_pythons_as_the_makefile() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    named = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if "Python" in name]
    assert named == ["3.11", "3.12", "3.13"]
    assert '">=3.11,<3.14"' in (ROOT / "Makefile").read_text()


def test_the_lock_holds_names_versions_and_hashes_only() -> None:
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", "")
    entry = re.compile(r"[a-z0-9._-]+==[a-z0-9.+!]+( ; [^:/@]+)?( +--hash=sha256:[0-9a-f]{64})+ *")
    assert [line for line in text.splitlines() if not entry.fullmatch(line)] == []


def test_every_dependency_is_locked() -> None:
    locked = re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.M)
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["dev"], *extras["onnx"]]
    assert {re.split(r"[^A-Za-z0-9._-]", name)[0].lower() for name in wanted} <= set(locked)
