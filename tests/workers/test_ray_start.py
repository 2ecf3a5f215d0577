"""RayPool where no Ray runs: it starts one and ends it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pool_evaluators import ScriptedFactory

from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.workers.ray_pool import RayPool

ray = pytest.importorskip("ray")


def test_a_pool_starts_ray_and_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)  # the workers find longrope and these evaluators all the same
    candidate = Candidate((1.0, 3.0), 0, 1.0)
    samples = ("score", "threads", "threads", "environment:CUDA_VISIBLE_DEVICES")
    with RayPool(ScriptedFactory(tmp_path), 1, threads=2) as pool:
        assert [result for _, result in pool.run(Task(candidate, sample) for sample in samples)] == [
            BlockScore((2.0, 6.0), 512, 0.5),
            BlockScore((2.0, 2.0, 2.0), 256, 0.0),
            BlockScore((2.0, 2.0, 2.0), 256, 0.0),
            BlockScore((), 256, 0.0),
        ]
        assert ray.is_initialized()
    assert not ray.is_initialized()
