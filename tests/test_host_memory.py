"""Main memory that is left, on this machine and in containers of both kinds of cgroups."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from longrope import host_memory


def test_this_machine_has_some() -> None:
    assert host_memory.free_host_memory() > 2**20


@pytest.mark.parametrize(
    ("limit", "used", "cache"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_container_leaves_what_its_limit_does_and_the_cache_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, cache: str
) -> None:
    monkeypatch.setattr(host_memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(host_memory, "_available", lambda: math.inf)
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / used).write_text("700\n")
    (tmp_path / limit).with_name("memory.stat").write_text(f"anon 600\n{cache} 90\n")
    assert host_memory.free_host_memory() == 390
    monkeypatch.setattr(host_memory, "_available", lambda: 200)
    assert host_memory.free_host_memory() == 200
