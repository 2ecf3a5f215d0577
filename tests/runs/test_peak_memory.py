"""The most memory of a process above what it held."""

from __future__ import annotations

import mmap
import sys

import pytest

from longrope.runs import peak_memory
from longrope.runs.peak_memory import PeakMemory, resident

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_what_is_given_back_counts_as_well() -> None:
    before = resident("VmRSS")
    peak = PeakMemory(on_gpu=False)
    with mmap.mmap(-1, 64 * MIB) as pages:  # new ones, not what the process holds of earlier
        for start in range(0, 64 * MIB, mmap.PAGESIZE):
            pages[start] = 1
    assert peak.above is not None
    assert 60 * MIB < peak.above < 120 * MIB
    assert resident("VmRSS") < before + 30 * MIB
    # Measured anew: what was before is no part of it.
    again = PeakMemory(on_gpu=False)
    assert again.above is not None
    assert again.above < 30 * MIB


def test_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(peak_memory, "_RESET", peak_memory.Path(str(tmp_path)) / "absent")
    assert PeakMemory(on_gpu=False).above is None
