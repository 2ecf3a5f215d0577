"""`longrope check`: what it prints, and how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longrope.export.huggingface import export_folder
from longrope.model.load import ModelSource
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, Window

Run = Callable[..., Any]
PLAIN = RopeFactors.identity(10000.0, 16, 64)
LONG = PLAIN.replace(lambdas=(1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.7, 4.1), target_length=256, attention_factor=1.15)


@pytest.fixture(scope="module")
def exported(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose short window has an attention factor of its own; not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_folder(ModelSource(str(model_folder)), FactorSchedule((Window(64, PLAIN), Window(256, LONG))), folder)
    return folder


def test_a_table_and_lines(longrope: Run, exported: Path) -> None:
    ended = longrope("check", exported, "--engine", "hf")
    assert (ended.code, ended.err) == (1, "")
    lines = ended.out.splitlines()
    assert re.fullmatch(rf"{re.escape(str(exported))} in transformers 5\S+, against longrope.json", lines[0])
    assert re.search(r"│ 1 to 64 +│ 64 +│ short +│ 1 +│ 1.15 +│ no: attention factor +│", ended.out)
    assert re.search(r"│ 65 to 256 +│ 256 +│ long +│ 1.15 +│ 1.15 +│ yes +│", ended.out)
    assert any(line.startswith("crosses a window: generation that grows above 64 tokens keeps") for line in lines)
    assert f'serve with: AutoModelForCausalLM.from_pretrained("{exported}")' in lines
    assert lines[-1] == "hf does not compute what was measured"


def test_the_length_that_is_served_decides(longrope: Run, exported: Path, tmp_path: Path) -> None:
    FactorSchedule((Window(256, LONG),)).save(tmp_path / "long.json")
    ended = longrope(
        "check", exported, "--engine", "vllm", "--max-length", "0.25k", "--factors", tmp_path / "long.json"
    )
    assert ended.code == 0, ended.out
    assert f"serve with: vllm serve {exported} --max-model-len 256" in ended.out
    assert ended.out.splitlines()[-1] == "vllm computes what was measured"
    ended = longrope("check", exported, "--engine", "vllm", "--max-length", 64, "--factors", tmp_path / "long.json")
    assert ended.code == 1
    assert "no: factors" in ended.out
    assert "ignored: the factors of window 256" in ended.out


def test_json(longrope: Run, exported: Path) -> None:
    ended = longrope("check", exported, "--engine", "mlx", "--json")
    assert ended.code == 1
    report = json.loads(ended.out)
    assert report["same"] is False
    assert report["model"] == str(exported)
    assert [(row["first"], row["last"], row["list"]) for row in report["rows"]] == [(1, 64, "none"), (65, 256, "none")]
    assert "--config-format v4" in report["mismatches"][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine", "tgi"), "engine 'tgi' is not known; give hf, vllm, sglang, llama.cpp, exllama, mlx"),
        (("--engine", "hf", "--max-length", "1k"), "max length 1k is above the model's 256"),
        (("--engine", "hf", "--factors", "none.json"), "factors file none.json does not exist"),
    ],
)
def test_mistakes(longrope: Run, exported: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = longrope("check", exported, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(rf"error: {re.escape(said)}.*\n", ended.err)


def test_a_model_that_is_not_scaled(longrope: Run, model_folder: Path) -> None:
    ended = longrope("check", model_folder, "--engine", "vllm")
    assert ended.code == 2
    assert "has rope type 'default', so there are no factors to check" in ended.err
