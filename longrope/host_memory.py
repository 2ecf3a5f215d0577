"""Main memory that this process may take."""

from __future__ import annotations

import math
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def free_host_memory() -> int:
    """Bytes of main memory that this process may take: free ones, or such as can be made free without swapping."""
    return int(min(_available(), _left_to_container(CGROUPS)))


def _left_to_container(cgroups: Path) -> float:
    """Bytes that the container's cgroup leaves, infinite without a limit; the cache of files gives way when needed."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, taken = (int((cgroups / name).read_text()) for name in (limit, used))
            stat = (cgroups / limit).parent / "memory.stat"
            lines = dict(line.split() for line in stat.read_text().splitlines())
        except (OSError, ValueError):  # absent, or "max"
            continue
        return max(most - taken + int(lines.get(cache, 0)), 0)
    return math.inf


def _available() -> int:
    try:
        import psutil  # comes with accelerate
    except ImportError:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return int(psutil.virtual_memory().available)
