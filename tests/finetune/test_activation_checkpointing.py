"""Activation checkpointing: the same gradients from the layers' inputs alone, wherever these are held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_gradients import loss_and_gradients, token_ids
from transformers import PreTrainedModel

from longrope.finetune.activation_checkpointing import HostMemory, checkpoint_activations
from longrope.model.attach import attached
from longrope.model.rope_config import read_rope
from longrope.rope.methods import yarn

Models = Callable[..., PreTrainedModel]
ARCHITECTURES = [
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "phi3",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "granite",
    "gpt_neox",
    "stablelm",
    "smollm3",
    "glm4",
    "deepseek_v3",
]


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What is moved to the host, in order; every one comes back exactly once."""
    packed: list[torch.Tensor] = []
    pack, unpack = HostMemory.pack, HostMemory.unpack

    def spy(self: HostMemory, tensor: torch.Tensor) -> Any:
        if tensor.numel():  # some versions of torch save an empty tensor too
            packed.append(tensor)
        return pack(self, tensor)

    monkeypatch.setattr(HostMemory, "pack", spy)
    monkeypatch.setattr(HostMemory, "unpack", lambda self, held: unpack(self, held))
    return packed


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_exactly_the_inputs_of_the_layers_are_moved(
    make_tiny_model: Models, model_type: str, moved: list[torch.Tensor]
) -> None:
    eager = {"attn_implementation": "eager"} if model_type == "gemma2" else {}
    model = make_tiny_model(model_type, **eager).train()
    ids = token_ids(24)
    plain = loss_and_gradients(model, input_ids=ids, labels=ids)
    handle = checkpoint_activations(model, offload=True)
    inputs: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        for layer in model.base_model.layers
    ]
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert len(moved) == len(model.base_model.layers)
    assert sum(each.nbytes for each in moved) == model.config.num_hidden_layers * ids.numel() * 64 * 4
    assert all(one is other or torch.equal(one, other) for one, other in zip(moved, inputs, strict=True))
    loss.backward()
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(loss_and_gradients(model, input_ids=ids, labels=ids), plain)
    handle.remove()
    handle.remove()
    moved.clear()
    torch.testing.assert_close(loss_and_gradients(model, input_ids=ids, labels=ids), plain)
    assert not moved


def test_only_the_inputs_of_the_layers_are_kept(make_tiny_model: Models) -> None:
    model = make_tiny_model("llama").train()
    ids = token_ids(24)

    def kept() -> int:
        """Tensors that the decoder's graph holds, parameters not counted."""
        parameters = {parameter.data_ptr() for parameter in model.parameters()}
        saved: list[torch.Tensor] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in parameters and tensor.numel() >= ids.numel() * 64:
                saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.model(input_ids=ids, use_cache=False)
        return len(saved)

    everything = kept()
    checkpoint_activations(model).remove()
    assert kept() == everything > 20
    handle = checkpoint_activations(model)
    inputs = kept()
    assert inputs < 2 + 5  # two layers, and what the last norm needs
    handle.remove()
    checkpoint_activations(model, offload=True)
    assert kept() == inputs - 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_under_peft_and_a_policy(make_tiny_model: Models, moved: list[torch.Tensor]) -> None:
    peft = pytest.importorskip("peft")
    model = make_tiny_model("llama").train()
    ids = token_ids(100)
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_lora_weights": False, "target_modules": ["q_proj", "v_proj"]}
    with attached(model, yarn(read_rope(model.config).present, 256), length=256):
        handle = checkpoint_activations(model, offload=True)
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).train()
        found = loss_and_gradients(adapted, input_ids=ids, labels=ids)
        assert len(moved) == 2
        handle.remove()
        torch.testing.assert_close(found, loss_and_gradients(adapted, input_ids=ids, labels=ids))


@pytest.mark.gpu
def test_on_a_gpu_the_inputs_leave_it(make_tiny_model: Models) -> None:
    size: dict[str, Any] = {"hidden_size": 512, "num_hidden_layers": 8}
    model = make_tiny_model("llama", **size).cuda().train()
    ids = token_ids(8192, rows=1).cuda()

    def run() -> tuple[float, int]:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated() - before
        model.zero_grad()
        hidden.square().sum().backward()
        return model.model.layers[0].self_attn.q_proj.weight.grad.norm().item(), held

    handle = checkpoint_activations(model)
    norm, held = run()
    handle.remove()
    checkpoint_activations(model, offload=True)
    offloaded_norm, offloaded = run()
    assert offloaded_norm == pytest.approx(norm, rel=1e-5)
    assert held - offloaded > 0.9 * 8 * 8192 * 512 * 4
