import json
from dataclasses import replace
from typing import Any

import pytest

from longrope.exceptions import SettingsError
from longrope.finetune.settings import AdapterSettings, FinetuneSettings, HeldOutSettings, MemorySettings

GIVEN = FinetuneSettings(model="m", factors="f", data="d", output="o", seq_length=128)


def test_settings_survive_json() -> None:
    settings = replace(
        GIVEN,
        betas=(0.8, 0.9),
        adapter=AdapterSettings(targets=("a", "b")),
        memory=MemorySettings(tile_mlp=64),
        held_out=HeldOutSettings(source="h", lengths=(1, 2)),
        report_to=("tensorboard",),
        windows=(32, 128),
    )
    assert FinetuneSettings.from_json(settings.to_json()) == settings
    assert json.loads(settings.to_json())["memory"]["tile_mlp"] == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "exponential"}, "schedule 'exponential' is not known; use linear, cosine, constant"),
        ({"method": "dora"}, "use full, attention, lora, qlora"),
        ({"attention": "sparse"}, "use full, shifted-sparse"),
        ({"kernel": "eager"}, "use auto, sdpa"),
        ({"precision": "int8"}, "use auto, bf16, fp16, fp32"),
        ({"offload": "disk"}, "use none, optimizer, all"),
        ({"seq_length": 1}, "seq-length is 1; give at least 2"),
        ({"steps": 0}, "steps is 0"),
        ({"global_batch": 0}, "global-batch is 0"),
        ({"sp": 0}, "sp is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"warmup": 500}, "longer than the run of 400 steps"),
        ({"learning_rate": 0.0}, "lr is 0.0"),
        ({"learning_rate": float("nan")}, "lr is nan"),
        ({"learning_rate": float("inf")}, "lr is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"betas": (0.9, 1.0)}, "betas are"),
        ({"zero": 4}, "zero is 4"),
        ({"zero": 0, "offload": "optimizer"}, "add --zero 2 or --zero 3"),
        ({"zero": 2, "offload": "all"}, "only ZeRO 3"),
        ({"zero": 0, "sp": 2}, "sp 2 is DeepSpeed Ulysses"),
        ({"sp": 3}, "cannot be cut into 3 equal shards"),
        ({"method": "qlora", "zero": 3}, "use --zero 2"),
        ({"group": 32}, "shifted-sparse"),
        ({"windows": (32, 64)}, "none of the windows 32, 64 holds a segment of 128"),
        ({"windows": (48, 128)}, "windows of 48 do not fill a segment; name one that divides 128"),
        ({"windows": (128, 64), "sp": 4}, "4 sharing one; name one that divides 32"),
        ({"attention_factor": "su"}, "attention factor 'su' is unknown; give own, shared or a number above 0"),
        ({"attention_factor": 0.0}, "attention factor 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        replace(GIVEN, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (MemorySettings, {"tile_mlp": -1}, "tile-mlp is -1"),
        (MemorySettings, {"offload_activations": True, "checkpoint_activations": False}, "leave checkpointing on"),
        (AdapterSettings, {"rank": 0}, "rank 0"),
        (HeldOutSettings, {"samples": 0}, "held-out-samples is 0"),
    ],
)
def test_parts_of_settings_that_cannot_be_are_refused(kind: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        kind(**changes)


@pytest.mark.parametrize(
    ("method", "processes", "zero"), [("full", 1, 0), ("full", 8, 3), ("lora", 8, 3), ("qlora", 8, 2)]
)
def test_the_stage_of_zero_follows_from_the_processes(method: str, processes: int, zero: int) -> None:
    assert replace(GIVEN, method=method).on(processes).zero == zero
    assert replace(GIVEN, method=method, zero=1).on(processes).zero == 1
