"""Estimates of memory and work, against what torch does, figures of papers, and each other."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from living_tensors import Peak
from tiny_models import tiny_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from longrope.exceptions import SettingsError
from longrope.finetune.activation_checkpointing import checkpoint_activations
from longrope.finetune.adapters import add_adapters
from longrope.finetune.attention_projections import train_only_attention
from longrope.finetune.estimate import Estimate, check_fits, describe, estimate, format_duration
from longrope.finetune.flops import TrainingFlops, forward_attention
from longrope.finetune.hardware import Hardware, peak_flops
from longrope.finetune.memory import _layer, _Numbers, training_memory
from longrope.finetune.model_shape import ModelShape
from longrope.finetune.settings import AdapterSettings, FinetuneSettings, MemorySettings
from longrope.finetune.tiled_loss import tile_loss
from longrope.finetune.tiled_mlp import tile_mlp
from longrope.model.architectures import ARCHITECTURES

GIB = 2**30
LLAMA_2 = LlamaConfig()  # the shape of Llama-2-7B
SHAPE = ModelShape.of(LLAMA_2)


def chosen(length: int = 131072, **changes: Any) -> FinetuneSettings:
    given = {
        "model": "m",
        "factors": "f",
        "data": "d",
        "output": "o",
        "seq_length": length,
        "zero": 0,
        "kernel": "sdpa",
    }
    return FinetuneSettings(**{**given, "global_batch": 8, **changes})


def gpus(count: int = 1, memory: float = 80, name: str = "NVIDIA H100 80GB HBM3", host: float = 1000) -> Hardware:
    return Hardware(
        devices=count,
        devices_per_node=min(count, 8),
        memory=int(memory * GIB),
        name=name,
        host_memory=int(host * GIB),
    )


def needs(given: FinetuneSettings, hardware: Hardware) -> dict[str, float]:
    """GiB of a device by what they are for."""
    return {name: size / GIB for name, size in training_memory(SHAPE, given, hardware).device.items()}


# Sizes


@pytest.mark.parametrize(
    ("model_type", "tied"), [*((each, False) for each in sorted(ARCHITECTURES)), ("llama", True), ("gemma2", True)]
)
def test_trained_parameters_are_those_that_adapters_leave_trainable(model_type: str, tied: bool) -> None:
    config, adapter = tiny_config(model_type, tie_word_embeddings=tied), AdapterSettings(rank=3)
    shape = ModelShape.of(config, adapter)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.trained("full") == shape.parameters == sum(each.numel() for each in model.parameters())
    train_only_attention(model)
    alone = {name: each.numel() for name, each in model.named_parameters() if each.requires_grad}
    assert shape.trained("attention") == sum(alone.values())
    assert all(".self_attn." in name or ".attention." in name for name in alone)
    adapted = add_adapters(model, adapter, "lora")
    trained = {name: each.numel() for name, each in adapted.named_parameters() if each.requires_grad}
    assert shape.trained("lora") == sum(trained.values())
    assert shape.trained("lora", False) == sum(size for name, size in trained.items() if "lora_" in name)


def test_llama_2() -> None:
    assert SHAPE.parameters == 6_738_415_616
    assert SHAPE.adapters == 8_388_608
    assert SHAPE.in_full == 2 * 32000 * 4096 + 65 * 4096


# Work


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt_neox", "deepseek_v3", "qwen3_moe"])
def test_operations_are_those_that_torch_counts(model_type: str) -> None:
    length, config = 48, tiny_config(model_type)
    shape = ModelShape.of(config)
    # As plain products of matrices, which torch knows how to count.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    counter = FlopCounterMode(display=False)
    ids = torch.arange(length)[None]
    with counter:
        model(input_ids=ids, labels=ids).loss.backward()
    found = TrainingFlops.of(shape, chosen(length, global_batch=1)).model
    # Computed so, the whole square of scores is.
    square = 3 * (2.0 * shape.layers * shape.heads * (shape.key_dim + shape.value_dim) * length**2)
    causal = 3 * forward_attention(shape, chosen(length))
    assert found + square - causal == pytest.approx(counter.get_total_flops())


def test_operations_of_llama_2_at_128k() -> None:
    per_token = TrainingFlops.of(SHAPE, chosen(global_batch=1)).model / 131072
    # 6 N + 12 layers heads head_dim L / 2, where N leaves out the embeddings that are only looked up.
    assert per_token == pytest.approx(6 * (6_738_415_616 - 32000 * 4096) + 6 * 32 * 4096 * 131072, rel=1e-3)


def test_windows_that_are_trained_in_turn_cost_their_mean() -> None:
    short, long = (forward_attention(SHAPE, chosen(length)) for length in (1024, 4096))
    sparse = chosen(4096, windows=(1024, 4096, 8192, 8192))
    assert forward_attention(SHAPE, sparse) == pytest.approx((4 * short + 3 * long) / 4)


@given(st.integers(2, 4096), st.integers(2, 4096))
@settings(max_examples=15)
def test_groups_see_less_than_everything(length: int, group: int) -> None:
    group = min(group, length)
    full = forward_attention(SHAPE, chosen(length))
    sparse = forward_attention(SHAPE, chosen(length, attention="shifted-sparse", group=group))
    pairs = sum(position % group + 1 for position in range(length))
    assert sparse == pytest.approx(pairs * 32 * 2 * 32 * 256)
    assert sparse <= full
    assert (sparse == full) == (group == length)


def test_sliding_windows_see_less_than_everything() -> None:
    shape = replace(SHAPE, layers=2, windows=(16, None))
    found = forward_attention(shape, chosen(100))
    pairs = sum(min(position + 1, 16) + position + 1 for position in range(100))
    assert found == pytest.approx(pairs * 2 * 32 * 256)


def test_frozen_weights_need_no_gradients() -> None:
    full, lora = (TrainingFlops.of(SHAPE, chosen(4096, method=method)) for method in ("full", "lora"))
    saved = 2.0 * 32 * (SHAPE.attention + SHAPE.mlp) * 4096 * 8
    adapters = 3 * 2.0 * SHAPE.adapters * 4096 * 8
    assert lora.model == pytest.approx(full.model - saved + adapters)
    alone = TrainingFlops.of(SHAPE, chosen(4096, method="attention"))
    assert alone.model == pytest.approx(full.model - 2.0 * (32 * SHAPE.mlp + SHAPE.head) * 4096 * 8)
    plain = AdapterSettings(train_embeddings_and_norms=False)
    assert TrainingFlops.of(SHAPE, chosen(4096, method="lora", adapter=plain)).model < lora.model
    kept = TrainingFlops.of(SHAPE, chosen(4096, memory=MemorySettings(checkpoint_activations=False)))
    assert kept.model == full.model
    assert full.hardware == pytest.approx(4 / 3 * full.model)
    assert full.model < kept.hardware < full.hardware


# Speed of GPUs


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_peaks(name: str, teraflops: float) -> None:
    assert peak_flops(name, "bf16") == teraflops * 1e12
    assert peak_flops(name, "fp32") is None


def test_unknown_speed_is_said(tmp_path: Any) -> None:
    assert peak_flops("Some GPU 3000", "bf16") is None
    for hardware in (gpus(name="Some GPU 3000"), Hardware(host_memory=64 * GIB)):
        found = estimate(tiny_config("llama"), chosen(64), hardware)
        assert found.seconds is None
        assert describe(found)[-1] == "duration: not estimated, shown after the first steps"


def test_duration_covers_what_others_reached() -> None:
    config = LlamaConfig(num_key_value_heads=8, intermediate_size=14336, vocab_size=128256)
    one_step = chosen(131072, zero=3, steps=1, warmup=0)
    found = estimate(config, one_step, gpus(8))
    assert found.seconds is not None
    fast, slow = found.seconds
    assert fast < 131072 / 1071 < slow  # Llama-3-8B in torchtitan, 1071 tokens/s per GPU
    assert "20% of the peak of 8 x NVIDIA H100 80GB HBM3, assumed" in describe(found)[-1]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (45, "45 s"),
        (89.4, "89 s"),
        (90, "1 min 30 s"),
        (143.6, "2 min 24 s"),
        (599, "9 min 59 s"),
        (600, "10 min"),
        (7000, "1.9 h"),
        (200000, "2.3 days"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


# Memory


@pytest.mark.parametrize(
    ("method", "zero", "tile", "kv_heads"),
    [
        ("full", 0, 0, 4),
        ("full", 3, 0, 2),
        ("lora", 0, 0, 4),
        ("lora", 3, 0, 2),
        ("full", 3, 64, 4),
        ("lora", 0, 64, 4),
        ("attention", 0, 0, 4),
        ("attention", 3, 0, 2),
        ("attention", 3, 64, 4),
    ],
)
def test_what_a_layer_saves_is_what_autograd_saves(method: str, zero: int, tile: int, kv_heads: int) -> None:
    tokens = 512
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        vocab_size=300,
    )
    given = chosen(tokens, method=method, zero=zero, global_batch=1, memory=MemorySettings(tile_mlp=tile))
    numbers, dtypes = _Numbers.of(given, gpus()), {2: torch.bfloat16, 4: torch.float32}
    model = AutoModelForCausalLM.from_config(config).to(dtypes[numbers.frozen])
    if tile:
        tile_mlp(model, tile)
    if method == "attention":
        train_only_attention(model)
    elif method == "lora":
        add_adapters(model, given.adapter, "lora", trained_dtype=dtypes[numbers.trained])
    hidden = torch.randn(1, tokens, 256, dtype=dtypes[numbers.hidden], requires_grad=True)
    cos, sin = model.model.rotary_emb(hidden, torch.arange(tokens)[None])
    others = {each.untyped_storage().data_ptr() for each in (*model.parameters(), hidden, cos, sin)}
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in others and tensor.shape not in weights:  # nor what autocast made of a weight
            saved[storage] = tensor
        return tensor

    weights = {shape for each in model.parameters() for shape in (each.shape, each.shape[::-1])}
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=zero == 0),
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
    ):
        model.model.layers[0](hidden, position_embeddings=(cos, sin), attention_mask=None)
    measured = sum(each.untyped_storage().nbytes() for each in saved.values())
    around, mlp, _ = _layer(ModelShape.of(config), given, numbers, tokens)
    assert around + mlp == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(
    ("method", "precision", "zero", "memory", "accumulation"),
    [
        ("full", "fp32", 0, MemorySettings(tile_loss=128), 1),
        ("full", "bf16", 0, MemorySettings(tile_loss=128), 2),
        ("full", "bf16", 3, MemorySettings(tile_loss=128, checkpoint_activations=False), 1),
        ("full", "bf16", 3, MemorySettings(tile_loss=128, tile_mlp=128), 1),
        ("lora", "bf16", 0, MemorySettings(tile_loss=128), 1),
        ("lora", "fp32", 0, MemorySettings(tile_loss=512, tile_mlp=128), 1),
        ("attention", "bf16", 0, MemorySettings(tile_loss=128), 2),
        ("attention", "bf16", 0, MemorySettings(tile_loss=128, checkpoint_activations=False), 1),
        ("attention", "bf16", 3, MemorySettings(tile_loss=128, checkpoint_activations=False), 1),
    ],
)
def test_tensors_of_a_step_take_what_was_estimated(
    method: str, precision: str, zero: int, memory: MemorySettings, accumulation: int
) -> None:
    tokens, dtypes = 512, {2: torch.bfloat16, 4: torch.float32}
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
    )
    given = chosen(tokens, method=method, precision=precision, zero=zero, memory=memory, global_batch=accumulation)
    numbers = _Numbers.of(given, gpus())
    model = AutoModelForCausalLM.from_config(config).to(dtypes[numbers.frozen])
    tile_loss(model, memory.tile_loss)
    if memory.tile_mlp:
        tile_mlp(model, memory.tile_mlp)
    if memory.checkpoint_activations:
        checkpoint_activations(model)
    if method == "attention":
        train_only_attention(model)
    elif method == "lora":
        add_adapters(model, given.adapter, "lora", trained_dtype=dtypes[numbers.trained])
    model.train()
    ids = torch.arange(tokens)[None] % 300
    with Peak(model.parameters()) as peak:
        for _ in range(accumulation):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16" and zero == 0):
                loss = model(input_ids=ids, shift_labels=ids, num_items_in_batch=tokens).loss
            loss.backward()
    found = training_memory(ModelShape.of(config), given, gpus()).device
    others = ("weights", "optimizer", "optimizer and float32 copies", "buffers", "libraries")
    estimated = sum(size for name, size in found.items() if name not in others)
    assert 0.85 < estimated / peak.most < 1.2


def test_states_of_full_training() -> None:
    weights = SHAPE.parameters / GIB
    for zero, devices, expected in (
        (0, 1, (4, 4, 8)),
        (1, 8, (2, 2, 12 / 8)),
        (2, 8, (2, 2 / 8, 12 / 8)),
        (3, 8, (2 / 8, 2 / 8, 12 / 8)),
    ):
        found = needs(chosen(4096, zero=zero), gpus(devices))
        optimizer = found.get("optimizer", 0) + found.get("optimizer and float32 copies", 0)
        assert (found["weights"], found["gradients"], optimizer) == pytest.approx(
            tuple(each * weights for each in expected)
        )


def test_offload_moves_states_to_the_host() -> None:
    here = training_memory(SHAPE, chosen(4096, zero=3), gpus(8))
    moved = training_memory(SHAPE, chosen(4096, zero=3, offload="optimizer"), gpus(8))
    everything = training_memory(SHAPE, chosen(4096, zero=3, offload="all"), gpus(8))
    assert here.device_bytes > moved.device_bytes > everything.device_bytes
    assert moved.host["optimizer, offloaded"] == pytest.approx(16 * SHAPE.parameters)
    assert everything.host["weights, offloaded"] == pytest.approx(2 * SHAPE.parameters)
    assert everything.device["weights"] == 0


def test_activations_at_128k() -> None:
    """One bfloat16 hidden state of each layer and token, 256 KiB: 32 GiB at 128k."""
    lora = {"method": "lora", "global_batch": 8}
    assert needs(chosen(**lora), gpus())["activations kept"] == pytest.approx(32)
    assert needs(chosen(zero=3, sp=4), gpus(8))["activations kept"] == pytest.approx(8)
    assert needs(chosen(), gpus())["activations kept"] == pytest.approx(64)  # float32 without DeepSpeed
    offloaded = training_memory(SHAPE, chosen(zero=3, sp=4, memory=MemorySettings(offload_activations=True)), gpus(8))
    assert offloaded.host["activations, offloaded"] / GIB == pytest.approx(8 * 8)
    assert offloaded.device["activations kept"] / GIB == pytest.approx(8 * 2 / 32)


def test_four_bits() -> None:
    found = needs(chosen(method="qlora"), gpus())
    trained = SHAPE.in_full + SHAPE.adapters
    expected = 0.516 * SHAPE.linear + 2 * (SHAPE.parameters - SHAPE.linear) + 4 * trained
    assert found["weights"] == pytest.approx(expected / GIB, rel=1e-3)


def test_a_cpu_holds_the_parts_of_all_processes() -> None:
    one = training_memory(SHAPE, chosen(4096), Hardware(host_memory=64 * GIB))
    two = training_memory(SHAPE, chosen(4096), Hardware(devices=2, devices_per_node=2, host_memory=64 * GIB))
    assert one.device == {}
    assert two.host["weights"] == 2 * one.host["weights"] == 8 * SHAPE.parameters


@settings(max_examples=40)
@given(
    st.sampled_from([8192, 32768, 131072]),
    st.sampled_from([("full", 0), ("full", 3), ("attention", 3), ("lora", 0), ("lora", 2), ("qlora", 2)]),
    st.sampled_from(["checkpoint", "offload", "tile_mlp", "tile_loss", "sp", "shorter"]),
)
def test_what_saves_memory_never_costs_memory(length: int, how: tuple[str, int], change: str) -> None:
    method, zero = how
    before = chosen(
        length, method=method, zero=zero, memory=MemorySettings(checkpoint_activations=False, tile_loss=8192)
    )
    memory = {
        "checkpoint": MemorySettings(tile_loss=8192),
        "offload": MemorySettings(tile_loss=8192, offload_activations=True),
        "tile_mlp": replace(before.memory, tile_mlp=2048),
        "tile_loss": replace(before.memory, tile_loss=512),
    }
    if change in memory:
        after = replace(before, memory=memory[change])
    elif change == "sp":
        after = replace(before, zero=max(zero, 1), sp=2)
        before = replace(before, zero=max(zero, 1))
    else:
        after = replace(before, seq_length=length // 2)
    assert training_memory(SHAPE, after, gpus(8)).device_bytes <= training_memory(SHAPE, before, gpus(8)).device_bytes


# Whether it fits


def advice(given: FinetuneSettings, hardware: Hardware) -> str:
    with pytest.raises(SettingsError) as caught:
        check_fits(Estimate.of(LLAMA_2, given, hardware, SHAPE))
    message = str(caught.value)
    assert re.fullmatch(r"this run needs about [\d.]+ GiB on each (GPU|host), and [\d.]+ GiB are free; [^\n]+", message)
    return message.split("; ", 1)[1]


@pytest.mark.parametrize(
    ("given", "hardware", "said"),
    [
        (chosen(4096, zero=3, micro_batch=8, global_batch=64), gpus(8, 30), "--micro-batch 1 would make it fit"),
        (
            chosen(16384, zero=3, memory=MemorySettings(checkpoint_activations=False)),
            gpus(8, 64),
            "--checkpointing would make it fit",
        ),
        (chosen(65536, zero=3, memory=MemorySettings(tile_loss=65536)), gpus(8, 55), "--tile-loss 0 would make it fit"),
        (chosen(65536, zero=3), gpus(8, 45), "--tile-mlp 4k would make it fit"),
        (chosen(131072, zero=3), gpus(8, 60), "--offload-activations would make it fit"),
        (chosen(4096, zero=1), gpus(8, 25), "--zero 3 would make it fit"),
        (chosen(4096, zero=3), gpus(4, 29), "--offload optimizer would make it fit"),
        (chosen(4096, zero=0), gpus(1, 40), "--zero 2 --offload optimizer would make it fit"),
        (chosen(4096, zero=3, offload="all"), gpus(1, 24, host=64), "--method lora would make it fit"),
        (chosen(131072, method="qlora", zero=0), gpus(1, 50), "--offload-activations would make it fit"),
        (
            chosen(131072, method="qlora", zero=0),
            gpus(1, 35),
            "--tile-mlp 4k --offload-activations would make it fit",
        ),
        (
            chosen(131072, method="qlora", zero=0),
            gpus(1, 22),
            "--tile-mlp 4k --offload-activations --seq-length 64k would make it fit",
        ),
        (chosen(4096), gpus(1, 2, host=3), "no settings make it fit here; use GPUs with more memory, or more of them"),
    ],
)
def test_advice(given: FinetuneSettings, hardware: Hardware, said: str) -> None:
    assert advice(given, hardware).startswith(said), advice(given, hardware)


def test_sequence_parallelism_is_advised_only_where_it_can_be() -> None:
    tight = chosen(131072, zero=3, memory=MemorySettings(tile_mlp=4096, offload_activations=True), offload="all")
    assert advice(tight, gpus(8, 20)) == "--sp 2 would make it fit"
    assert "--sp" not in advice(tight, gpus(1, 20))
    odd = LlamaConfig(num_attention_heads=33, num_key_value_heads=33, hidden_size=33 * 128)
    with pytest.raises(SettingsError) as caught:
        check_fits(estimate(odd, tight, gpus(8, 20)))
    assert "--sp" not in str(caught.value)


@given(
    st.sampled_from([2048, 16384, 65536, 262144]),
    st.sampled_from(["full", "attention", "lora", "qlora"]),
    st.integers(0, 2),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([16, 40, 80]),
)
@settings(max_examples=25)
def test_advice_that_is_followed_makes_it_fit(length: int, method: str, zero: int, devices: int, memory: int) -> None:
    given, hardware = chosen(length, method=method, zero=zero), gpus(devices, memory)
    found = Estimate.of(LLAMA_2, given, hardware, SHAPE)
    try:
        check_fits(found)
    except SettingsError as error:
        options = str(error).split("; ", 1)[1]
    else:
        return
    if options.startswith("no settings"):
        return
    words = options.removesuffix(" would make it fit").split()
    followed = found.changed(apply(given, words))
    check_fits(followed)


def apply(given: FinetuneSettings, words: list[str]) -> FinetuneSettings:
    """The settings as the options of the command line change them."""
    from longrope.lengths import parse_length

    changes: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    while words:
        name = words.pop(0)
        if name == "--checkpointing":
            memory["checkpoint_activations"] = True
        elif name == "--offload-activations":
            memory["offload_activations"] = True
        elif name in ("--tile-mlp", "--tile-loss"):
            memory[name[2:].replace("-", "_")] = parse_length(words.pop(0))
        elif name in ("--offload", "--method"):
            changes[name[2:]] = words.pop(0)
        else:
            changes[name[2:].replace("-", "_")] = parse_length(words.pop(0)) if name != "--zero" else int(words.pop(0))
    return replace(given, **changes, memory=replace(given.memory, **memory))


def test_lines() -> None:
    lines = describe(estimate(LLAMA_2, chosen(131072, zero=3, steps=400), gpus(8)))
    assert lines[0] == "parameters: 6.74B, trained: 6.74B; tokens of the run: 419M"
    assert re.fullmatch(r"memory of each GPU, estimated: [\d.]+ GiB of 80.0 GiB free", lines[1])
    assert sum(float(line.split()[-2]) for line in lines[2:10]) == pytest.approx(float(lines[1].split()[5]), abs=0.5)
    assert "memory of each host, estimated: 16.0 GiB of 1000.0 GiB free" in lines
