"""A run that was killed in every stage ends as one that nobody disturbed, and does nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import killed_extend
import pytest
import torch
from safetensors.torch import load_file
from tiny_recipes import STAGES, START, STEP, Whole

from longrope.pipeline.state import DONE, open_state
from longrope.runs.journal import read_journal

BETWEEN_CHECKPOINTS = f"{STEP} 3"


def test_a_run_that_is_killed_in_every_stage_ends_the_same(whole: Whole, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    every = whole.seen.moments
    kills = [(stage, draw.randint(1, len(every[stage]))) for stage in (START, *STAGES)]
    kills[1 + STAGES.index("finetune-128")] = ("finetune-128", 1 + every["finetune-128"].index(BETWEEN_CHECKPOINTS))
    told = [f"{stage}: {moment}, before {every[stage][moment - 1]}" for stage, moment in kills]
    print(f"seed {seed}, killed at {'; '.join(told)}")  # shown where the test fails

    folder = tmp_path / "run"
    command = [sys.executable, killed_extend.__file__, str(whole.recipe), str(folder), json.dumps(kills)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout[-2000:], done.stderr[-5000:])
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1]) == [-signal.SIGKILL] * len(kills) + [0]

    assert_same_results(folder, whole.folder)
    for journal in folder.rglob("evaluation*.jsonl"):
        asked = [
            json.dumps([event.get(name) for name in ("candidate", "sample", "method", "item")])
            for event in read_journal(journal)[1]
            if event["kind"] in ("evaluation", "result")
        ]
        assert asked
        assert len(asked) == len(set(asked))


def assert_same_results(folder: Path, whole: Path) -> None:
    """The same factors with all that is told of them, perplexities and weights."""
    found, expected = open_state(folder).stages, open_state(whole).stages
    assert [stage.state for stage in found.values()] == [DONE] * len(STAGES)
    told = (folder / "export" / "longrope.json").read_text()
    assert told.replace(str(folder), str(whole)) == (whole / "export" / "longrope.json").read_text()
    for name in ("before", "after", "served"):
        rows, wanted = found[name].results["table"], expected[name].results["table"]
        assert [row["method"] for row in rows] == [row["method"] for row in wanted]
        for row, other in zip(rows, wanted, strict=True):
            assert row["perplexity"] == pytest.approx(other["perplexity"], rel=1e-6)
    trained, weights = (load_file(each / "finetune-128" / "model" / "model.safetensors") for each in (folder, whole))
    assert trained.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-6)
