"""The most memory that some code takes: of the GPUs where there are any, else of the process."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """From the moment it is made on, above what was held then.

    Args:
        on_gpu: whether the memory of the GPUs is meant; otherwise that of this process (Linux only).
    """

    def __init__(self, on_gpu: bool) -> None:
        self._gpus = range(torch.cuda.device_count()) if on_gpu else range(0)
        self._held: float | None = None
        if on_gpu:
            for each in self._gpus:
                torch.cuda.reset_peak_memory_stats(each)
            self._held = sum(map(torch.cuda.memory_allocated, self._gpus))
        elif _RESET.exists():
            self._held = resident("VmRSS")
            _RESET.write_text("5")  # resets the peak

    @property
    def above(self) -> float | None:
        """Bytes, of all GPUs together; None where the system does not tell."""
        if self._held is None:
            return None
        most = sum(map(torch.cuda.max_memory_allocated, self._gpus)) if self._gpus else resident("VmHWM")
        return max(most - self._held, 0.0)


def resident(name: str) -> float:
    """Bytes of this process in memory: now (``VmRSS``), or at most (``VmHWM``). Linux only."""
    match = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024.0
