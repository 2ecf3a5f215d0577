"""`longrope score` from the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import text, write_documents

from longrope.model import scoring_plan
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.model.score import perplexity, score_tokens
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn

Run = Callable[..., Any]


@pytest.fixture
def long_text(tmp_path: Path) -> Path:
    path = tmp_path / "long.txt"
    path.write_text(text(0, 900))
    return path


def rows(out: str) -> dict[str, list[str]]:
    """The cells of each row of the table, by its first."""
    found = [re.split(r"\s*[│┃]\s*", line.strip().strip("│┃").strip()) for line in out.splitlines() if "│" in line]
    return {cells[0]: cells[1:] for cells in found}


def expected(folder: Path, path: Path, length: int, factors: RopeFactors | None = None) -> float:
    source = ModelSource(str(folder))
    model = source.load_model()
    ids = source.load_tokenizer()(path.read_text(), verbose=False)["input_ids"][:length]
    nll = score_tokens(model, ids, factors or read_rope(model.config).present)
    return perplexity(float(nll.sum()), length - 1)


@pytest.mark.parametrize("chunk", [100, 5000])
def test_scores_the_beginning_of_a_text_at_each_length(
    longrope: Run, model_folder: Path, long_text: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(scoring_plan, "CPU_CHUNK", chunk)
    threads = torch.get_num_threads()
    ended = longrope("score", model_folder, long_text, "--lengths", "600,64", "--threads", 1)
    assert ended.code == 0, ended.err
    found = rows(ended.out)
    assert list(found) == ["64", "600"]
    for length in (64, 600):
        assert float(found[str(length)][0]) == pytest.approx(expected(model_folder, long_text, length), rel=1e-4)
    assert torch.get_num_threads() == threads


def test_under_factors_and_under_a_published_method(
    longrope: Run, model_folder: Path, long_text: Path, tmp_path: Path
) -> None:
    factors = yarn(RopeFactors.identity(10000.0, 16, 64), 512)
    factors.save(tmp_path / "factors.json")
    scored = expected(model_folder, long_text, 512, factors)
    assert scored != pytest.approx(expected(model_folder, long_text, 512), rel=1e-3)
    for options in (("--factors", tmp_path / "factors.json"), ("--method", "yarn")):
        ended = longrope("score", model_folder, long_text, "--lengths", 512, *options)
        assert ended.code == 0, ended.err
        assert float(rows(ended.out)["512"][0]) == pytest.approx(scored, rel=1e-4)


def test_documents_are_read_one_after_the_other(longrope: Run, model_folder: Path, tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "text.jsonl", 3, words=100)
    ended = longrope("score", model_folder, documents, "--lengths", 700)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--lengths", "100k"), "tokens, fewer than 102400"),
        (("--lengths", "1"), "lengths are [1]; give some, each of at least 2 tokens"),
        (("--lengths", "64", "--method", "yarm"), "method 'yarm' is not known"),
        (("--lengths", "64", "--threads", 0), "threads per worker is 0"),
    ],
)
def test_bad_input(longrope: Run, model_folder: Path, long_text: Path, options: tuple[object, ...], told: str) -> None:
    ended = longrope("score", model_folder, long_text, *options)
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert told in ended.err


@pytest.mark.parametrize(
    ("there", "options", "told"),
    [
        (0, ("--gpus", 2), "GPUs per worker is 2, but this machine has no GPU; leave it away, or use another machine"),
        (1, ("--gpus", 2), "GPUs per worker is 2, but this machine has 1; give at most that"),
        (2, ("--sp", 4), "sp is 4, but this machine has 2; give at most that"),
    ],
)
def test_more_gpus_than_there_are(
    longrope: Run,
    model_folder: Path,
    long_text: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: int,
    options: tuple[object, ...],
    told: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(there))))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    ended = longrope("score", model_folder, long_text, "--lengths", 64, *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == [f"error: {told}"]


def test_a_text_that_does_not_exist(longrope: Run, model_folder: Path, tmp_path: Path) -> None:
    ended = longrope("score", model_folder, tmp_path / "absent.txt", "--lengths", 64)
    assert (ended.code, "absent.txt" in ended.err) == (2, True)
