from dataclasses import replace

import pytest
import torch

from longrope.exceptions import SettingsError
from longrope.finetune.precision import choose_kernel, choose_precision
from longrope.finetune.settings import FinetuneSettings

GIVEN = FinetuneSettings(model="m", factors="f", data="d", output="o", seq_length=128, zero=2)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU that has bf16, as far as torch can be asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    return monkeypatch


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("changes", "weights", "autocast"),
    [
        ({}, torch.bfloat16, None),  # DeepSpeed keeps float32 copies
        ({"zero": 0}, torch.float32, torch.bfloat16),
        ({"zero": 0, "method": "lora"}, torch.bfloat16, torch.bfloat16),
        ({"zero": 0, "method": "attention"}, torch.float32, torch.bfloat16),
        ({"precision": "fp16"}, torch.float16, None),
        ({"precision": "fp32", "zero": 0}, torch.float32, None),
    ],
)
def test_weights_have_the_bits_that_small_steps_need(
    changes: dict[str, object], weights: torch.dtype, autocast: torch.dtype | None
) -> None:
    precision = choose_precision(replace(GIVEN, **changes), "cuda")
    assert (precision.weights, precision.autocast) == (weights, autocast)


def test_a_cpu_has_no_bf16_under_deepspeed() -> None:
    with pytest.raises(SettingsError, match="use fp32, or --zero 0"):
        choose_precision(replace(GIVEN, precision="bf16"), "cpu")
    assert choose_precision(replace(GIVEN, precision="bf16", zero=0), "cpu").autocast == torch.bfloat16


def test_an_old_gpu_computes_in_fp16(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_precision(GIVEN, "cuda").name == "fp16"
    with pytest.raises(SettingsError, match="use fp16"):
        choose_precision(replace(GIVEN, precision="bf16"), "cuda")


def test_a_driver_without_a_gpu_asks_for_bf16_on_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_precision(GIVEN, "cuda").name == "bf16"
    assert choose_precision(replace(GIVEN, precision="bf16"), "cuda").name == "bf16"
    assert choose_precision(GIVEN, "cpu").name == "fp32"


def test_flash_attention_computes_no_float32() -> None:
    full = replace(GIVEN, precision="fp32", kernel="flash_attention_2")
    with pytest.raises(SettingsError, match="use sdpa"):
        choose_kernel(full, choose_precision(full, "cpu"), "cuda")
