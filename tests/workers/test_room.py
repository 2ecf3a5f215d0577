"""How many evaluators fit on a machine, and that the default number is one that fits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from pool_evaluators import ScriptedFactory

from longrope.exceptions import SettingsError
from longrope.workers import room
from longrope.workers.local_pool import LocalPool
from longrope.workers.room import gpu_room, usable_cpus
from longrope.workers.settings import ExecutionSettings


@pytest.mark.parametrize(
    ("gpus", "share", "expected"),
    [(8, 1, 8), (8, 2, 4), (7, 2, 3), (1, 2, 0), (8, 0.5, 16), (8, 0.3, 24), (8, 0.4, 16), (8, 0.6, 8), (1, 0.1, 10)],
)
def test_shares_do_not_span_gpus(gpus: int, share: float, expected: int) -> None:
    assert gpu_room(gpus, share) == expected


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0, 2.0, 3.0, 8.0])
def test_the_default_number_fits_and_one_more_does_not(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    workers = ExecutionSettings(gpus_per_worker=share).worker_count(on_gpu=True)
    assert workers is not None
    LocalPool(ScriptedFactory(tmp_path), workers, gpus_per_worker=share)
    with pytest.raises(SettingsError, match=f"use at most {workers} workers"):
        LocalPool(ScriptedFactory(tmp_path), workers + 1, gpus_per_worker=share)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000"}, 6),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 6),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_containers_and_batch_jobs_limit_the_cpus(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(room, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert usable_cpus() == expected
    assert ExecutionSettings(threads_per_worker=2).worker_count(on_gpu=False) == max(expected // 2, 1)


def test_without_affinity_all_cpus_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cpus() == 64
