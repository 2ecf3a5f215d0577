"""Speed and memory of training steps on one GPU, for a model of a given shape with random weights.

Weights do not matter for speed, so that a model of 7B parameters needs no download:

    python benchmarks/finetune_speed.py --lengths 32k,64k,128k --longest
    python benchmarks/finetune_speed.py --lengths 32k --method qlora
    python benchmarks/finetune_speed.py --shape tiny --lengths 512,1k       # the same on a CPU

Each line is written as soon as it is measured: tokens/s, model FLOP utilisation (causal attention, no recomputation
counted) and the most memory that tensors took.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from longrope.finetune.flops import TrainingFlops
from longrope.finetune.hardware import Hardware, peak_flops
from longrope.finetune.model_shape import ModelShape
from longrope.finetune.monitor import peak_memory, speed
from longrope.finetune.precision import choose_kernel, choose_precision
from longrope.finetune.prepare import PreparedModel, extend_model, prepare_model
from longrope.finetune.settings import FinetuneSettings, MemorySettings
from longrope.lengths import format_length, parse_length, parse_lengths
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.rope.methods import yarn
from longrope.rope.policy import FixedFactors

SHAPES = {
    "llama-2-7b": LlamaConfig(max_position_embeddings=4096),  # transformers' defaults are Llama-2-7B's
    "llama-3-8b": LlamaConfig(
        vocab_size=128256,
        intermediate_size=14336,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
    "tiny": LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
    ),
}


def build(config: LlamaConfig, settings: FinetuneSettings, device: str) -> PreparedModel:
    """The model as ``longrope finetune`` trains it in one process, on the device."""
    precision = choose_precision(settings, device)
    kernel = choose_kernel(settings, precision, device)
    policy = FixedFactors(yarn(read_rope(config).present, max(settings.seq_length, config.max_position_embeddings * 2)))
    torch.manual_seed(0)
    if settings.method != "qlora":
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=precision.weights, attn_implementation=kernel)
        return extend_model(model, settings, policy, precision)
    with tempfile.TemporaryDirectory() as folder:  # quantisation happens while weights are loaded
        AutoModelForCausalLM.from_config(config, dtype=precision.weights).save_pretrained(folder)
        return prepare_model(ModelSource(folder, attention=kernel), settings, policy, precision)


def measure(config: LlamaConfig, settings: FinetuneSettings, device: str, steps: int) -> dict[str, Any]:
    """Speed and memory of ``steps`` optimizer steps after a first one."""
    prepared = build(config, settings, device)
    precision = choose_precision(settings, device)
    model = prepared.trained.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=device == "cuda")
    ids = torch.randint(config.vocab_size, (1, settings.seq_length), device=device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = 0.0
    for step in range(steps + 1):
        if step == 1:
            started = _now(device)
        with torch.autocast(device, dtype=precision.autocast, enabled=precision.autocast is not None):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = _now(device) - started
    flops = TrainingFlops.of(ModelShape.of(config, settings.adapter), settings)
    peak = peak_flops(Hardware.here().name, precision.name)
    figures = speed(steps, seconds, tokens=settings.seq_length, devices=1, model_flops=flops.model, peak=peak)
    return {
        **figures,
        "model_tflops_per_second": steps * flops.model / seconds / 1e12,
        "peak_gib": peak_memory() / 2**30,
        "loss": loss.item(),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "trained": sum(weight.numel() for weight in trained),
        "kernel": choose_kernel(settings, precision, device),
    }


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-2-7b")
    parser.add_argument("--lengths", type=parse_lengths, default=parse_lengths("32k,64k,128k"))
    parser.add_argument("--longest", action="store_true", help="go on to longer ones until the memory is not enough")
    parser.add_argument("--method", choices=["full", "lora", "qlora"], default="lora")
    parser.add_argument("--attention", choices=["full", "shifted-sparse"], default="full")
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--offload-activations", action="store_true")
    parser.add_argument("--tile-mlp", type=parse_length, default=8192)
    parser.add_argument("--output", type=Path, help="a file that receives the lines too")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = SHAPES[args.shape]
    lengths, fits = list(args.lengths), True
    while lengths and fits:
        length = lengths.pop(0)
        settings = FinetuneSettings(
            model=args.shape,
            factors="",
            data="",
            output="",
            seq_length=length,
            global_batch=1,
            zero=0,
            method=args.method,
            attention=args.attention,
            kernel=args.kernel,
            memory=MemorySettings(offload_activations=args.offload_activations, tile_mlp=args.tile_mlp),
        )
        line: dict[str, Any] = {
            "shape": args.shape,
            "method": args.method,
            "attention": args.attention,
            "length": format_length(length),
            "offload_activations": args.offload_activations,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        }
        try:
            line |= measure(config, settings, device, args.steps)
        except torch.cuda.OutOfMemoryError as error:
            line["out_of_memory"] = str(error).partition(".")[0]
            fits = False
        if args.longest and fits and not lengths:
            lengths.append(length * 3 // 2 // 1024 * 1024 if length >= 1024 else length * 2)
        text = json.dumps(line)
        print(text, flush=True)
        if args.output is not None:
            with args.output.open("a") as stream:
                stream.write(text + "\n")
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
