"""Tiled MLPs: the untiled loss and gradients, a tile at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_gradients import loss_and_gradients, token_ids
from transformers import PreTrainedModel

from longrope.exceptions import SettingsError
from longrope.finetune.activation_checkpointing import checkpoint_activations
from longrope.finetune.tiled_mlp import tile_mlp

Models = Callable[..., PreTrainedModel]
SAME = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("model_type", ["llama", "phi3", "gemma2", "granite", "gpt_neox", "olmo2"])
def test_equals_the_untiled_mlp(make_tiny_model: Models, model_type: str, checkpointed: bool) -> None:
    eager = {"attn_implementation": "eager"} if model_type == "gemma2" else {}
    model = make_tiny_model(model_type, tie_word_embeddings=model_type == "granite", **eager).train()
    ids = token_ids(37)
    plain = loss_and_gradients(model, input_ids=ids, labels=ids)
    if checkpointed:
        checkpoint_activations(model)
    tiled = tile_mlp(model, 10)
    torch.testing.assert_close(loss_and_gradients(model, input_ids=ids, labels=ids), plain, **SAME)
    tiled.remove()
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_tile_passes_at_a_time_and_no_more_often_than_needed(make_tiny_model: Models) -> None:
    model = make_tiny_model("llama").train()
    checkpoint_activations(model)
    tile_mlp(model, 10)
    seen: list[int] = []
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    ids = token_ids(16)  # 32 positions in two rows
    loss_and_gradients(model, input_ids=ids, labels=ids)
    assert sorted(seen) == [2] * 4 + [10] * 12  # two layers, forward and backward


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_inside_of_peft(make_tiny_model: Models) -> None:
    peft = pytest.importorskip("peft")
    model = make_tiny_model("llama").train()
    tiled = tile_mlp(model, 10)
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_lora_weights": False, "target_modules": ["q_proj", "up_proj", "down_proj"]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    ids = token_ids(37)
    found = loss_and_gradients(adapted, input_ids=ids, labels=ids)
    tiled.remove()
    torch.testing.assert_close(found, loss_and_gradients(adapted, input_ids=ids, labels=ids), **SAME)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_dropout_inside_is_refused(make_tiny_model: Models) -> None:
    peft = pytest.importorskip("peft")
    model = make_tiny_model("llama").train()
    tile_mlp(model, 10)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["up_proj"], lora_dropout=0.1)).train()
    ids = token_ids(37)
    with pytest.raises(SettingsError, match="drops out"):
        adapted(input_ids=ids)
    adapted.eval()(input_ids=ids)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_mixtures_of_experts_are_refused(make_tiny_model: Models, model_type: str) -> None:
    with pytest.raises(SettingsError, match=f"'{model_type}' has mixtures of experts"):
        tile_mlp(make_tiny_model(model_type), 10)
