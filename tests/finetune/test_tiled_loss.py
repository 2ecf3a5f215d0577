"""The tiled loss: transformers' own loss and gradients, and never all logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_gradients import loss_and_gradients, token_ids
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from longrope.exceptions import SettingsError
from longrope.finetune.activation_checkpointing import checkpoint_activations
from longrope.finetune.tiled_loss import tile_loss
from longrope.model.attach import attached
from longrope.model.rope_config import read_rope
from longrope.rope.methods import yarn

Models = Callable[..., PreTrainedModel]
SAME = {"atol": 1e-5, "rtol": 1e-5}


def labels_for(ids: torch.Tensor) -> torch.Tensor:
    """Labels of which some do not count."""
    return ids.masked_fill(ids % 5 == 0, -100)


def shifted(labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "model_type",
    ["llama", "mixtral", "phi3", "gemma2", "gemma3_text", "granite", "gpt_neox", "stablelm", "deepseek_v3"],
)
def test_equals_the_loss_of_transformers(make_tiny_model: Models, model_type: str, tied: bool) -> None:
    eager = {"attn_implementation": "eager"} if model_type == "gemma2" else {}
    model = make_tiny_model(model_type, tie_word_embeddings=tied, **eager).train()
    ids = token_ids(37)
    inputs = {"input_ids": ids, "labels": labels_for(ids)}
    plain = loss_and_gradients(model, **inputs)
    tiled = tile_loss(model, 10)
    torch.testing.assert_close(loss_and_gradients(model, **inputs), plain, **SAME)
    tiled.remove()
    assert "forward" not in vars(model)


def test_half_precision_logits_are_compared_in_float32(make_tiny_model: Models) -> None:
    model = make_tiny_model("llama").bfloat16().train()
    ids = token_ids(37)
    plain = model(input_ids=ids, labels=ids).loss
    tile_loss(model, 10)
    loss = model(input_ids=ids, labels=ids).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, **SAME)


@pytest.mark.parametrize("count", [None, 100, torch.tensor(100)], ids=["own", "number", "tensor"])
def test_shifted_labels_and_the_number_of_items(make_tiny_model: Models, count: Any) -> None:
    model = make_tiny_model("llama").train()
    ids = token_ids(37)
    labels = labels_for(ids)
    plain = loss_and_gradients(model, input_ids=ids, labels=labels, num_items_in_batch=count)
    tile_loss(model, 10)
    found = loss_and_gradients(model, input_ids=ids, shift_labels=shifted(labels), num_items_in_batch=count)
    torch.testing.assert_close(found, plain, **SAME)


def test_shards_add_up_and_one_without_labels_gives_zero(make_tiny_model: Models) -> None:
    model = make_tiny_model("llama").train()
    tile_loss(model, 10)
    ids = token_ids(16)
    labels = shifted(ids)
    whole = loss_and_gradients(model, input_ids=ids, shift_labels=labels, num_items_in_batch=30)
    later, none = labels.clone(), torch.full_like(labels, -100)
    later[:, :8] = -100
    first = torch.where(later == -100, labels, -100)
    parts = [
        loss_and_gradients(model, input_ids=ids, shift_labels=part, num_items_in_batch=30)
        for part in (first, later, none)
    ]
    assert all(not each.any() for each in parts[2].values())
    torch.testing.assert_close({name: sum(part[name] for part in parts) for name in whole}, whole, **SAME)
    assert model(input_ids=ids, shift_labels=none).loss == 0


class Largest(TorchDispatchMode):
    """The most rows of a tensor whose last dimension is the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, torch.Tensor) and each.ndim and each.shape[-1] == self.vocabulary:
                self.rows = max(self.rows, each.numel() // self.vocabulary)
        return out


@pytest.mark.parametrize("checkpointed", [False, True])
def test_never_more_logits_than_a_tile(make_tiny_model: Models, checkpointed: bool) -> None:
    model = make_tiny_model("llama", vocab_size=131).train()
    if checkpointed:
        checkpoint_activations(model)
    ids = token_ids(48)

    def most() -> int:
        with Largest(131) as largest:
            loss_and_gradients(model, input_ids=ids, labels=ids)
        return largest.rows

    assert most() == 96
    tile_loss(model, 16)
    # As many rows as a tile or as the transposed weight has.
    assert most() == max(16, 64)


def test_the_default_tile_is_128_mib_of_logits(make_tiny_model: Models) -> None:
    tiled = tile_loss(make_tiny_model("llama", vocab_size=1024))
    assert tiled.tile * 1024 * 4 == 128 * 2**20


def test_without_labels_it_is_the_model_it_was(make_tiny_model: Models) -> None:
    model = make_tiny_model("llama")
    ids = token_ids(16)
    signature = inspect.signature(model.forward)
    with torch.no_grad():
        plain = model(ids).logits
        generated = model.generate(ids, max_new_tokens=4, do_sample=False)
        tiled = tile_loss(model)
        assert torch.equal(model(ids).logits, plain)
        assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), generated)
        assert inspect.signature(model.forward) == signature
        assert model(ids, labels=ids).logits is None
        assert model(ids, labels=ids, return_dict=False)[0] == model(ids, labels=ids).loss
        tiled.remove()
        assert model(ids, labels=ids).logits is not None


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ],
    ids=["lora-head", "saved-head"],
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_inside_of_peft(make_tiny_model: Models, options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    model = make_tiny_model("llama").train()
    tiled = tile_loss(model, 10)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options))
    ids = token_ids(37)
    found = loss_and_gradients(adapted, input_ids=ids, labels=ids)
    assert adapted(input_ids=ids, labels=ids).logits is None
    tiled.remove()
    torch.testing.assert_close(found, loss_and_gradients(adapted, input_ids=ids, labels=ids), **SAME)


def test_under_an_attached_policy(make_tiny_model: Models) -> None:
    model = make_tiny_model("llama").train()
    ids = token_ids(100)
    with attached(model, yarn(read_rope(model.config).present, 256), length=256):
        plain = loss_and_gradients(model, input_ids=ids, labels=ids)
        tile_loss(model, 16)
        torch.testing.assert_close(loss_and_gradients(model, input_ids=ids, labels=ids), plain, **SAME)


def test_under_autocast_and_around_what_accelerate_wraps(make_tiny_model: Models) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = make_tiny_model("llama").train()
    ids = token_ids(37)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model(input_ids=ids, labels=ids).loss
    tile_loss(model, 10)
    accelerate.state.AcceleratorState._reset_state(True)  # it is one for the whole process
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    try:
        prepared = accelerator.prepare(model)
        found = loss_and_gradients(prepared, input_ids=ids, labels=ids)["loss"]
        unwrapped = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    finally:
        accelerate.state.AcceleratorState._reset_state(True)
    torch.testing.assert_close(found, plain, atol=1e-2, rtol=1e-2)
    assert found != loss_and_gradients(make_tiny_model("llama").train(), input_ids=ids, labels=ids)["loss"]
    assert unwrapped(input_ids=ids, labels=ids).logits is None


def test_a_load_balancing_loss_is_refused(make_tiny_model: Models) -> None:
    with pytest.raises(SettingsError, match="output_router_logits"):
        tile_loss(make_tiny_model("mixtral", output_router_logits=True))
    model = make_tiny_model("mixtral")
    tile_loss(model)
    ids = token_ids(8)
    with pytest.raises(SettingsError, match="output_router_logits"):
        model(ids, labels=ids, output_router_logits=True)
