"""What would stop a later stage is said before the first one starts, of what is left to do and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_recipes import Moments
from transformers import LlamaConfig

from longrope.exceptions import SettingsError
from longrope.finetune import hardware
from longrope.finetune.hardware import Hardware
from longrope.pipeline import foreseen, room, run
from longrope.pipeline.foreseen import Foreseen, foresee
from longrope.pipeline.gpus import gpu_hardware
from longrope.pipeline.inputs import key_of, stage_inputs
from longrope.pipeline.recipe import read_recipe
from longrope.pipeline.run import extend
from longrope.pipeline.standing import standings
from longrope.pipeline.state import DONE, RunState, StageState

RECIPE = """\
model: llama
data: {documents: {source: text.jsonl}, training: text.jsonl}
stages:
- search: {target_length: 128k}
- finetune: {seq_length: 128k, sp: 8, offload: optimizer}
- search: {target_length: 2m}
- readjust: {windows: [4k]}
- evaluate: {suite: passkey, lengths: [128k]}
- export:
"""
Read = Callable[..., Any]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads that recipe, beside the weights of Llama-2-7B as far as their names go."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    LlamaConfig(max_position_embeddings=4096, rope_parameters=rope).save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "model.safetensors").write_text("")
    (tmp_path / "text.jsonl").write_text('{"text": "words"}\n')
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return lambda *changes: read_recipe(tmp_path / "recipe.yaml", changes)


@pytest.fixture
def a100s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight A100 of 80 GB, and a disk with room for everything."""
    for package in ("accelerate", "deepspeed"):
        pytest.importorskip(package)

    def here(devices: int = 1, devices_per_node: int | None = None, device: str = "cuda") -> Hardware:
        return gpu_hardware("a100", devices, host_memory=1024)

    for name, value in {"is_available": True, "device_count": 8, "is_bf16_supported": True}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *arguments, value=value, **options: value)
    monkeypatch.setattr(Hardware, "here", here)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**50))


def seen(recipe: Any, folder: Path, done: tuple[str, ...] = ()) -> Foreseen:
    """What is foreseen where some stages are done."""
    state = RunState("recipe")
    inputs = stage_inputs(recipe)
    for name in done:
        state.stages[name] = StageState("", "", inputs[name], key_of(inputs[name]), state=DONE)
        for part in (
            "results.json",
            "factors.json",
            "config.json",
            "a.safetensors",
            "model/config.json",
            "model/a.safetensors",
        ):
            (folder / name / part).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / part).write_text("{}")
    return foresee(recipe, standings(recipe, inputs, state, folder), folder)


LONGER = "search-2m.target_length=8m"
"""Than what one GPU can score."""


def names(lines: list[str]) -> list[str]:
    """The stages that lines are of."""
    return [line.partition(": ")[2].partition(":")[0] for line in lines]


@pytest.mark.usefixtures("a100s")
def test_stages_that_need_more_memory_than_a_gpu_has(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(seen(read(), tmp_path / "run").problems) == ["evaluate-passkey"]
    found = seen(read(LONGER), tmp_path / "run")
    assert names(found.problems) == ["search-8m", "evaluate-passkey"]
    search, passkey = found.problems
    # 128 GiB of keys and values of a layer, and 12.6 of weights.
    assert search.startswith(
        f"{str(tmp_path / 'recipe.yaml')!r} line 6: search-8m: does not fit: a text of 8m needs 141.9 GiB"
    )
    assert "GiB on a GPU, and 79.2 GiB are there; " in search
    assert "execution.gpus_per_worker: 2 would make it fit" in passkey
    assert found.notes == []
    every = [stage.name for stage in read(LONGER).stages]
    assert names(seen(read(LONGER), tmp_path / "half", tuple(every[:3])).problems) == ["evaluate-passkey"]
    monkeypatch.setattr(foreseen, "plan", lambda recipe: 1 / 0)  # nothing is asked of a run that is done
    assert seen(read(LONGER), tmp_path / "done", tuple(every)) == Foreseen()


@pytest.mark.usefixtures("a100s")
def test_settings_that_the_model_or_the_machine_cannot_have(read: Read, tmp_path: Path) -> None:
    def problem(*changes: str) -> str:
        fits = "evaluate-passkey.execution.gpus_per_worker=2"
        [found] = seen(read(fits, *changes), tmp_path / "run").problems
        return found

    for change, told in {
        "finetune-128k.sp=64": "finetune-128k: sp is 64, but the model has 32 query heads",
        "finetune-128k.launch.gpus=16": "finetune-128k: gpus is 16, but this machine has 8",
        "finetune-128k.launch.gpus=1": "finetune-128k: offload 'optimizer' is done by DeepSpeed",
        "finetune-128k.memory.checkpoint_activations=false": "finetune-128k: this run needs about",
        "finetune-128k.adapter.targets=[query]": "finetune-128k: lora target 'query' is no linear layer",
        "readjust.algorithm.lambda_max=0.5": "readjust: lambda_max 0.5 is below lambda_min 1.0",
        "readjust.execution.gpus_per_worker=16": "readjust: GPUs per worker is 16, but this machine has 8",
        "search-128k.execution.attention=flash_attention_3": "search-128k: attention 'flash_attention_3' needs the",
    }.items():
        assert told in problem(change)


@pytest.mark.usefixtures("a100s")
def test_of_a_cluster_only_what_holds_on_all_machines_is_said(read: Read, tmp_path: Path) -> None:
    recipe = run.on_cluster(
        read("finetune-128k.memory.checkpoint_activations=false", "launch.gpus=16"), "10.0.0.1:6379"
    )
    assert seen(recipe, tmp_path / "run") == Foreseen()
    recipe = run.on_cluster(read("finetune-128k.sp=64"), "10.0.0.1:6379")
    assert names(seen(recipe, tmp_path / "run").problems) == ["finetune-128k"]


def test_without_a_gpu_memory_for_texts_is_but_noted(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(hardware, "free_host_memory", lambda: 2**34)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**50))
    found = seen(read("finetune-128k.sp=1", "finetune-128k.offload=none"), tmp_path / "run")
    assert names(found.notes) == ["search-128k", "search-2m", "readjust", "evaluate-passkey"]
    [training] = found.problems  # which that stage would be refused for in its turn
    assert "finetune-128k: this run needs about" in training


@pytest.mark.usefixtures("a100s")
def test_a_run_that_cannot_end_does_not_begin(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Began(Exception):
        pass

    def begin(*arguments: Any) -> None:
        raise Began

    monkeypatch.setattr(run, "perform", begin)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    heard = Moments()
    with pytest.raises(SettingsError, match=r"output: the run will leave .* are free; .*nothing was started"):
        extend(read(LONGER), tmp_path / "run", heard)
    assert names([note.removeprefix("error: ") for note in heard.notes]) == ["search-8m", "evaluate-passkey"]
    assert not (tmp_path / "run").exists()
    heard = Moments()
    with pytest.raises(Began):
        extend(read(LONGER), tmp_path / "run", heard, force=True)
    assert [note.startswith("note: ") for note in heard.notes[:3]] == [True] * 3
    assert "search-8m: does not fit" in heard.notes[0]
