"""How much memory this process may use: the machine's, or less in a container with a limit."""

from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")


def total_memory() -> int:
    """Total bytes of memory."""
    limit = _limit()
    machine = int(psutil.virtual_memory().total)
    return machine if limit is None else min(machine, limit[0])


def available_memory() -> int:
    """Bytes that are free or only cache files."""
    limit = _limit()
    machine = int(psutil.virtual_memory().available)
    return machine if limit is None else min(machine, max(0, limit[0] - limit[1]))


def _limit() -> tuple[int, int] | None:
    """(limit, use without file cache) of the container's cgroup, v2 or v1; None if unlimited."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        if (CGROUPS / limit).exists() and (CGROUPS / used).exists():
            text = (CGROUPS / limit).read_text().strip()
            if text == "max":
                return None
            stat = dict(
                line.split()
                for line in (CGROUPS / used).with_name("memory.stat").read_text().splitlines()
            )
            return int(text), int((CGROUPS / used).read_text()) - int(stat.get(cache, 0))
    return None
