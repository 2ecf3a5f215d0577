"""`longrope plan` from the command line: its table, its JSON, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

Run = Callable[..., Any]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A search on one GPU and a fine-tuning on all, of Llama-2-7B."""
    LlamaConfig(max_position_embeddings=4096).save_pretrained(tmp_path / "llama")
    (tmp_path / "text.jsonl").write_text('{"text": "words"}\n')
    path = tmp_path / "path.yaml"
    path.write_text(
        """
model: llama
data: {documents: {source: text.jsonl}, training: text.jsonl}
stages:
- search: {target_length: 2m, execution: {workers: 1}}
- finetune: {name: tune, seq_length: 2m, sp: 8, steps: 10, warmup: 0}
- evaluate: {suite: harness, model: original, tasks: [arc_easy]}
"""
    )
    return path


def test_the_table_and_what_does_not_fit(longrope: Run, recipe: Path) -> None:
    done = longrope("plan", recipe, "search-2m.target_length=8m", "--gpus", 8, "--gpu", "H100")
    assert (done.code, done.err) == (0, "")
    assert "path: " in done.out
    assert "8 x NVIDIA H100 80GB HBM3" in done.out
    rows = {line.split()[1]: line for line in done.out.splitlines() if line.startswith("│")}
    assert rows["search-8m"].split("│")[-2].strip() == "no"
    assert rows["evaluate-harness"].count("unknown") == 3
    assert rows["total"].count("over") == 3
    lines = done.out.splitlines()
    assert any(line.startswith("search-8m: does not fit: a text of 8m needs") for line in lines)
    assert any(line.startswith("tune: does not fit: this run needs about") for line in lines)
    assert any(line.startswith("assumed of the 989 TFLOP/s") and "--utilisation" in line for line in lines)


def test_json_says_the_same_and_changes_are_heard(longrope: Run, recipe: Path) -> None:
    arguments = ("plan", recipe, "--gpu", "h100", "--gpus", 8, "--json")
    first = json.loads(longrope(*arguments).out)
    assert [stage["name"] for stage in first["stages"]] == ["search-2m", "tune", "evaluate-harness"]
    assert first["total"]["fits"] is False
    assert first["utilisation"]["scoring"] == 0.5
    less = json.loads(longrope(*arguments[:2], "tune.steps=5", *arguments[2:], "--utilisation", "scoring=0.25").out)
    before, after = first["stages"], less["stages"]
    assert after[1]["seconds"] == pytest.approx(before[1]["seconds"] / 2)
    assert after[0]["seconds"] == pytest.approx(before[0]["seconds"] * 2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--gpu", "h1000"), "error: gpu 'h1000' is not known; use a10g, a100, "),
        (("--gpu", "h100", "--measure"), "error: measuring is done on this machine"),
        (("--gpu", "h100", "--utilisation", "fast"), "error: utilisation 'fast' is not understood; write 0.4, or "),
        (("tune.step=5",), "error: override 'tune.step=5': 'step' is no key of a fine-tuning; did you mean 'steps'?"),
    ],
)
def test_mistakes_take_one_line(longrope: Run, recipe: Path, arguments: tuple[str, ...], told: str) -> None:
    done = longrope("plan", recipe, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(told)
    assert done.err.count("\n") == 1
