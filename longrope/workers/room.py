"""How many evaluators a machine has room for."""

from __future__ import annotations

import os
from pathlib import Path

from longrope.host_memory import CGROUPS


def gpu_room(gpus: int, gpus_per_worker: float) -> int:
    """Workers that fit on ``gpus`` GPUs, with a fraction of one each or whole ones: no share spans two GPUs."""
    if gpus_per_worker < 1:
        return gpus * int(1 / gpus_per_worker + 1e-9)  # 1 / 0.1 is a little less than 10 in binary
    return gpus // int(gpus_per_worker)


def usable_cpus() -> int:
    """CPUs this process may use, which in containers and batch jobs are fewer than the machine has; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(int(min(cpus, _cpu_quota(CGROUPS))), 1)


def _cpu_quota(cgroups: Path) -> float:
    """CPUs that the container's cgroup allows, infinite without a limit or cgroups; version 2 has one file, 1 two."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = map(float, " ".join((cgroups / name).read_text() for name in names).split())
        except (OSError, ValueError):  # absent, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return float("inf")
