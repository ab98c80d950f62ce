"""How much memory there is, on a machine and in a container."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from segmodel.core import memory
from segmodel.core.memory import available_memory, total_memory


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(total=1000, available=600)
    )
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)


def test_without_a_limit_it_is_the_machine_s(tmp_path: Path) -> None:
    assert (total_memory(), available_memory()) == (1000, 600)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert (total_memory(), available_memory()) == (1000, 600)


@pytest.mark.parametrize(
    ("limit", "used", "cache"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_container_s_limit_counts_where_it_is_smaller(
    tmp_path: Path, limit: str, used: str, cache: str
) -> None:
    """300 used of 400, 50 of them for files that can go: 150 are left."""
    for name, text in ((limit, "400\n"), (used, "300\n")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / used).with_name("memory.stat").write_text(f"anon 250\n{cache} 50\n")
    assert (total_memory(), available_memory()) == (400, 150)
    (tmp_path / limit).write_text("9223372036854771712\n")  # what version 1 says when there is none
    assert (total_memory(), available_memory()) == (1000, 600)
