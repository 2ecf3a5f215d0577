"""Room for a text of any length beside the weights: what is foreseen, and what is told when memory ran out."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from longrope.finetune.model_shape import ModelShape
from longrope.model.load import ModelSource
from longrope.pipeline import scoring_room
from longrope.pipeline.scoring_room import ScoringRoom
from longrope.runs.model import open_model
from longrope.sizes import GIB
from longrope.workers.settings import ExecutionSettings

LLAMA_2 = ModelShape.of(LlamaConfig())
MILLION = 1 << 20
ROOM = ScoringRoom(shape=LLAMA_2, number=2, memory=79.2 * GIB)


def longest(line: str, after: str) -> float:
    """The length in a line, in millions of tokens."""
    return float(line.split(after)[1].split("k")[0]) / 1024


def test_lengths_that_fit_are_not_told_of() -> None:
    assert ROOM.foreseen([4096, 2 * MILLION]) is None
    assert replace(ROOM, memory=None).foreseen([64 * MILLION]) is None


def test_the_longest_on_these_gpus_and_on_any_number_of_them() -> None:
    """16 KiB a token: 64 GiB beside the weights hold 4m and a little; 77 GiB hold almost 5m."""
    told = ROOM.foreseen([MILLION, 5 * MILLION, 8 * MILLION])
    assert told is not None
    assert told.startswith("5m, 8m: not expected to fit; a text of 5m needs about 9")
    here = longest(told, "that fits is about ")
    assert 3.9 < here < 4.2
    assert 4.6 < longest(told, "number of GPUs for its layers ") < 4.9
    spread = replace(ROOM, gpus=2).foreseen([8 * MILLION])
    assert spread is not None
    assert here < longest(spread, "that fits is about ") < 4.6
    # Processes with all weights on each.
    together = replace(ROOM, processes=4).foreseen([8 * MILLION])
    assert together is not None
    assert "number of GPUs" not in together


def test_processes_on_cpu_count_together() -> None:
    alone, four = (replace(ROOM, memory=None, processes=each).ran_out(MILLION, True) for each in (1, 4))
    sizes = [float(told.split("about ")[1].split(" GiB")[0]) for told in (alone, four)]
    assert 3 * sizes[0] < sizes[1] < 4 * sizes[0]


def test_no_length_fits_beside_such_weights() -> None:
    told = replace(ROOM, memory=8 * GIB).ran_out(4096, False)
    assert "; no text fits, with any number of GPUs for its layers 4k: give fewer tokens" in told


def test_of_layers_in_main_memory_one_is_on_the_gpu(model_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(scoring_room.Hardware, "here", lambda: SimpleNamespace(memory=1000))
    execution = ExecutionSettings()
    model = open_model(str(model_folder), execution)
    shape = ModelShape.of(model.config)
    on_gpu = replace(model, source=ModelSource(model.source.name, device="cuda", dtype="bfloat16"))
    room = ScoringRoom.of(on_gpu, execution, shape)
    assert (room.number, room.gpus, room.memory) == (2, 1, 1000)
    assert room.shape.parameters == shape.parameters - (shape.layers - 1) * shape.layer
    spread = replace(on_gpu, source=replace(on_gpu.source, device="auto"))
    room = ScoringRoom.of(spread, replace(execution, gpus_per_worker=4), shape)
    assert (room.gpus, room.shape) == (4, shape)
    assert ScoringRoom.of(model, execution, shape).memory is None
