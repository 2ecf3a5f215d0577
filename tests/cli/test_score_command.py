"""`longrope score` from the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_search import text, write_documents

from longrope.model import scoring_plan
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.model.score import perplexity, score_tokens
from longrope.pipeline import score_text, scoring_memory
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn

Run = Callable[..., Any]
MIB = 1 << 20


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


def test_speed_counts_the_operations_of_a_pass(
    longrope: Run, model_folder: Path, long_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two for every weight of a matrix and token, and for every element of a key and a value that a query sees."""
    clock = iter([10.0, 10.5])
    monkeypatch.setattr(score_text, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    ended = longrope("score", model_folder, long_text, "--lengths", 600)
    model = ModelSource(str(model_folder)).load_model()
    layers = sum(each.numel() for each in model.model.layers.parameters() if each.ndim == 2)
    config = model.config
    attention = config.num_hidden_layers * 2 * config.num_attention_heads * config.head_dim * 600 * 601 / 2
    operations = 2 * (layers * 600 + model.lm_head.weight.numel() * 599 + attention)
    _, seconds, speed, rate, _ = rows(ended.out)["600"]
    assert (seconds, speed) == ("0.50", "1,200")
    assert float(rate) == pytest.approx(operations / 0.5 / 1e12, rel=0.01)


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


# --- Memory that runs out, and GPUs ---


@pytest.fixture
def runs_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], None]:
    """Scoring fails beyond so many tokens."""

    def arrange(most: int, error: Exception) -> None:
        def fail(model: Any, tokens: Any, *args: Any) -> Any:
            if len(tokens) > most:
                raise error
            return score_tokens(model, tokens, *args)

        monkeypatch.setattr(score_text, "score_tokens", fail)

    return arrange


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """GPUs of so many bytes, as torch tells of them; what they are to compute is computed on CPU."""
    load = ModelSource.load_model

    def arrange(count: int, memory: float) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
        told: dict[str, Any] = {
            "is_available": lambda: True,
            "device_count": lambda: count,
            "is_bf16_supported": lambda including_emulation: True,
            "current_device": lambda: 0,
            "get_device_name": lambda index: "a GPU",
            "get_device_properties": lambda index: SimpleNamespace(total_memory=int(memory)),
            "mem_get_info": lambda index: (int(memory), int(memory)),
            "memory_reserved": lambda index: 0,
            "memory_allocated": lambda index: 10 * MIB,
            "max_memory_allocated": lambda index: 310 * MIB,
            "reset_peak_memory_stats": lambda index: None,
        }
        for name, tells in told.items():
            monkeypatch.setattr(torch.cuda, name, tells)
        monkeypatch.setattr(
            ModelSource, "load_model", lambda source: load(replace(source, device="cpu", dtype="float32", sp=1))
        )

    return arrange


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_memory_that_runs_out_is_one_line_after_what_was_scored(
    longrope: Run, model_folder: Path, long_text: Path, runs_out: Any
) -> None:
    runs_out(100, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    ended = longrope("score", model_folder, long_text, "--lengths", "64,600,100,700")
    assert ended.code == 1
    assert list(rows(ended.out)) == ["64", "100"]
    *told, last = ended.err.splitlines()
    assert last.startswith("error: main memory ran out at 600 tokens, which need about ")
    assert last.endswith("; give fewer tokens, or use a machine with more memory")
    assert "Traceback" not in ended.err
    # Each result is told at once, too.
    assert [line.split(":")[0] for line in told[1:]] == ["64", "100"]
    assert f"perplexity {rows(ended.out)['64'][0]}" in told[1]


def test_memory_that_runs_out_at_once(longrope: Run, model_folder: Path, long_text: Path, runs_out: Any) -> None:
    runs_out(10, OUT_OF_MEMORY)
    ended = longrope("score", model_folder, long_text, "--lengths", "64,600")
    assert (ended.code, ended.out) == (1, "")
    assert "error: main memory ran out at 64 tokens" in ended.err


def test_other_errors_stay_what_they_are(longrope: Run, model_folder: Path, long_text: Path, runs_out: Any) -> None:
    runs_out(100, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        longrope("score", model_folder, long_text, "--lengths", "64,600")


def needed(folder: Path, length: int, memory: float | None, gpus: int = 1) -> float:
    shape = score_text.ModelShape.of(ModelSource(str(folder)).load_config())
    work = scoring_memory.Work(length=length, count=1, predicted=length - 1)
    return sum(scoring_memory.scoring_memory(shape, work, 2, gpus, memory=memory).values())


def test_what_does_not_fit_on_a_gpu_is_told_before_and_after(
    longrope: Run, model_folder: Path, long_text: Path, runs_out: Any, gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring_memory, "LIBRARIES", 0)
    memory = (needed(model_folder, 1100, 1.0) + needed(model_folder, 1900, 1.0)) / 2
    gpus(1, memory)
    runs_out(1500, OUT_OF_MEMORY)
    ended = longrope("score", model_folder, long_text, "--lengths", "64,1900")
    assert ended.code == 1
    assert list(rows(ended.out)) == ["64"]
    before, loading, *_, last = ended.err.splitlines()
    assert before.startswith("1900: not expected to fit; a text of 1900 needs about ")
    assert "and the longest text that fits is about 1k; tried all the same, the shortest first" in before
    assert loading.startswith("loading ")
    assert last.startswith("error: the memory of a GPU ran out at 1900 tokens: a text of 1900 needs about ")
    assert "; the longest text that fits is about 1k: give fewer tokens, or use a GPU with more memory; more" in last
    assert last.endswith("more GPUs hold the weights only, for keys and values of a layer are on each")


def test_what_should_fit_on_a_gpu_and_does_not(
    longrope: Run, model_folder: Path, long_text: Path, runs_out: Any, gpus: Any
) -> None:
    gpus(1, 80 << 30)
    runs_out(100, OUT_OF_MEMORY)
    ended = longrope("score", model_folder, long_text, "--lengths", "64,600")
    note, *_, last = ended.err.splitlines()
    assert note.startswith("loading ")
    assert "ran out at 600 tokens, although a text of 600 needs about 1.0 GiB on a GPU, and 80.0 GiB are there" in last
    assert "see whether others use the GPU" in last


def test_main_memory_that_runs_out_beside_a_gpu(
    longrope: Run, model_folder: Path, long_text: Path, runs_out: Any, gpus: Any
) -> None:
    gpus(1, 80 << 30)
    runs_out(100, RuntimeError("17179869184 bytes of main memory could not be pinned (CUDA error 2)"))
    ended = longrope("score", model_folder, long_text, "--lengths", "64,600")
    assert ended.err.splitlines()[-1] == (
        "error: main memory ran out at 600 tokens; give fewer tokens, or use a machine with more memory"
    )


@pytest.mark.parametrize(("options", "told"), [(("--gpus", 2), True), (("--gpus", 1), False), (("--sp", 2), False)])
def test_layers_on_several_gpus_work_one_after_the_other(
    longrope: Run, model_folder: Path, long_text: Path, gpus: Any, options: tuple[object, ...], told: bool
) -> None:
    gpus(4, 80 << 30)
    ended = longrope("score", model_folder, long_text, "--lengths", "64", *options)
    assert ended.code == 0, ended.err
    notes = ended.err.splitlines()
    assert ("as fast as one; --sp 2, with the whole model on each, shares the work instead" in notes[0]) == told
    assert notes[told].startswith("loading ")


def test_memory_is_that_of_the_gpus(longrope: Run, model_folder: Path, long_text: Path, gpus: Any) -> None:
    gpus(2, 80 << 30)
    ended = longrope("score", model_folder, long_text, "--lengths", "64")
    assert rows(ended.out)["64"][-1] == "600 MiB"  # 300 of each, above the 10 that were held


@pytest.mark.parametrize(
    ("there", "options", "left"),
    [
        ("0,1,2,3", ("--gpus", 2), "0,1"),
        ("3,5,7", ("--gpus", 1), "3"),
        (None, ("--gpus", 2), "0,1"),
        ("3,5,7", (), "3,5,7"),
        ("3,5,7", ("--sp", 2), "3,5,7"),
    ],
)
def test_the_model_sees_as_many_gpus_as_it_is_given(
    longrope: Run,
    model_folder: Path,
    long_text: Path,
    gpus: Any,
    monkeypatch: pytest.MonkeyPatch,
    there: str | None,
    options: tuple[object, ...],
    left: str,
) -> None:
    gpus(4, 80 << 30)
    if there is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", there)
    seen, load = [], ModelSource.load_model

    def noted(source: ModelSource) -> Any:
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return load(source)

    monkeypatch.setattr(ModelSource, "load_model", noted)
    ended = longrope("score", model_folder, long_text, "--lengths", "64", *options)
    assert ended.code == 0, ended.err
    assert seen == [left]
