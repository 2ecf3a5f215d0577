"""Time and memory of scoring long samples, beside what the hardware can do and beside plain transformers.

    python benchmarks/scoring.py lengths                    # the embedded model at 8k to 128k tokens
    python benchmarks/scoring.py against                    # in turns with a plain pass and with transformers' own loss
    python benchmarks/scoring.py profile --lengths 32k      # share of the time in matrix products and attention
    python benchmarks/scoring.py gpu --output scoring.jsonl # LLaMA2-7B and LLaMA3-8B shapes at 128k to 2m; one GPU

Operations are those of a forward pass with half of the square of attention; the peak is that of the device's own matrix
products, measured in the same run. Memory is the most above the loaded model, each figure from a process of its own.
With --output every figure is written down when it is known, and not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from longrope.demo import model_folder
from longrope.finetune.flops import forward_flops
from longrope.finetune.model_shape import ModelShape
from longrope.lengths import format_length, parse_lengths
from longrope.model import scoring_plan
from longrope.model.load import DTYPES
from longrope.model.rope_config import read_rope
from longrope.model.score import score_blocks
from longrope.rope.methods import yarn
from longrope.runs.peak_memory import PeakMemory

GIB = 2**30
LLAMA: dict[str, Any] = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {**LLAMA, "intermediate_size": 11008, "num_key_value_heads": 32, "max_position_embeddings": 4096},
    "llama-3-8b": {
        **LLAMA,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "vocab_size": 128256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    # Little but its vocabulary.
    "vocabulary": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 128256,
        "max_position_embeddings": 512,
    },
}
ON_GPU = [
    *((name, 32, length) for length in (131072, 262144, 524288) for name in ("llama-2-7b", "llama-3-8b")),
    *((name, 2, 2097152) for name in ("llama-2-7b", "llama-3-8b")),
    ("llama-3-8b", 4, 1048576),
    ("llama-2-7b", 4, 1048576),
]


def load(name: str, layers: int | None, dtype: str, device: str) -> Any:
    """The embedded model, or random weights in the shape of another."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    if name == "demo":
        model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=DTYPES[dtype])
        return model.to(device).eval().requires_grad_(False)
    config = LlamaConfig(**{**SHAPES[name], **({"num_hidden_layers": layers} if layers else {})})
    with torch.device(device):
        torch.set_default_dtype(DTYPES[dtype])
        try:
            return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)


def ways(model: Any, length: int) -> dict[str, Callable[[], float]]:
    """What scores random tokens, and gives their mean loss in nats, by name."""
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, length)
    rope = read_rope(model.config)
    factors = yarn(rope.present, length) if length > rope.window else rope.present

    def ours(chunk: int | None) -> float:
        before = scoring_plan.CPU_CHUNK
        scoring_plan.CPU_CHUNK = chunk or before
        try:
            return float(score_blocks(model, ids, [factors]).sum()) / (length - 1)
        finally:
            scoring_plan.CPU_CHUNK = before

    def theirs() -> float:
        batch = torch.from_numpy(ids)[None].to(model.device)
        with torch.inference_mode():
            return float(model(batch, labels=batch, use_cache=False).loss)

    return {"layer by layer": lambda: ours(None), "a plain pass": lambda: ours(length), "transformers": theirs}


def matmul_peak(dtype: str, device: str) -> float:
    """Operations a second of a large product of square matrices, the best of some."""
    size = 8192 if device == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    best = 0.0
    for _ in range(12):
        seconds = timed(lambda: left @ right, device)[0]
        best = max(best, 2 * size**3 / seconds)
    return best


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One way at one length, in this process."""
    model = load(args.model, args.layers, args.dtype, args.device)
    ways(model, 64)[args.way]()  # what the first call allocates for good is part of a loaded model
    work = ways(model, args.length)[args.way]
    peak = PeakMemory(args.device == "cuda")
    try:
        seconds, loss = timed(work, args.device)
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    config = model.config
    flops = forward_flops(ModelShape.of(config), args.length, args.length - 1)
    return {"seconds": seconds, "loss": loss, "memory": peak.above, "flops": flops}


def apart(
    args: argparse.Namespace, way: str, model: str, layers: int | None, length: int, repeat: int = 0
) -> dict[str, Any]:
    """The same in a process of its own, unless it is known."""
    what = {
        "model": model,
        "layers": layers,
        "way": way,
        "length": length,
        "repeat": repeat,
        **{name: getattr(args, name) for name in ("dtype", "device", "threads")},
    }
    known = []
    if args.output and Path(args.output).exists():
        known = [json.loads(line) for line in Path(args.output).read_text().splitlines()]
    for each in known:
        if {name: each[name] for name in what} == what:
            return each
    words = [word for name, value in what.items() if value is not None for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, __file__, "one", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = {**what, **json.loads(done.stdout.splitlines()[-1])}
    if args.output:
        with Path(args.output).open("a") as file:
            file.write(json.dumps(found) + "\n")
    return found


def lengths(args: argparse.Namespace, cells: list[tuple[str, int | None, int]]) -> None:
    """A row a length: time beside what the operations say, and memory."""
    peak = matmul_peak(args.dtype, args.device)
    print(f"matrix products in {args.dtype}: {peak / 1e12:.3g} TFLOP/s", flush=True)
    print("| model | layers | tokens | seconds | tokens/s | TFLOP/s | of the peak | time / operations | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    first: dict[str, float] = {}
    for model, layers, length in cells:
        found = apart(args, "layer by layer", model, layers, length)
        if "failed" in found:
            print(f"| {model} | {layers or ''} | {format_length(length)} | {found['failed']} | | | | | |", flush=True)
            continue
        rate = found["flops"] / found["seconds"]
        share = found["seconds"] / found["flops"]
        relative = share / first.setdefault(f"{model}/{layers}", share)
        memory = "unknown" if found["memory"] is None else f"{found['memory'] / GIB:.2f} GiB"
        print(
            f"| {model} | {layers or ''} | {format_length(length)} | {found['seconds']:.2f} | "
            f"{length / found['seconds']:,.0f} | {rate / 1e12:.3g} | {rate / peak:.0%} | {relative:.2f} | {memory} |",
            flush=True,
        )
        whole = SHAPES.get(model, {}).get("num_hidden_layers")
        if layers and whole and layers < whole:
            print(
                f"  extrapolated, not measured: {whole} layers in {found['seconds'] * whole / layers:,.0f} s",
                flush=True,
            )


def against(args: argparse.Namespace) -> None:
    """Two ways in turns in one process, and the memory of each in its own."""
    for name, length, other in (
        ("demo", 8192, "a plain pass"),
        ("demo", 16384, "transformers"),
        ("vocabulary", 8192, "transformers"),
    ):
        model = load(name, None, args.dtype, args.device)
        both = {way: work for way, work in ways(model, length).items() if way in ("layer by layer", other)}
        seconds: dict[str, list[float]] = {way: [] for way in both}
        losses: dict[str, float] = {}
        for work in ways(model, 512).values():
            work()
        for _ in range(args.pairs):
            for way, work in both.items():
                took, losses[way] = timed(work, args.device)
                seconds[way].append(took)
        # What an allocator keeps of freed memory differs from run to run.
        memory = {
            way: [apart(args, way, name, None, length, repeat)["memory"] for repeat in range(args.pairs)]
            for way in both
        }
        print(f"\n{name}, {format_length(length)} tokens, {args.dtype}, {args.pairs} pairs in turns")
        for way, times in seconds.items():
            used = ", ".join("unknown" if each is None else f"{each / 2**20:.0f}" for each in memory[way])
            print(f"  {way}: {min(times):.3f} s at best, {median(times):.3f} s median; {used} MiB")
        ours, theirs = seconds["layer by layer"], seconds[other]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(f"  time ratio of the pairs: {min(ratios):.3f} to {max(ratios):.3f}, median {median(ratios):.3f}")
        if None not in memory[other]:
            print(f"  ratio of median memory: {median(memory['layer by layer']) / median(memory[other]):.3f}")
        if other == "a plain pass":
            print(f"  losses differ by {abs(losses['layer by layer'] / losses[other] - 1):.1e}", flush=True)


def profile(args: argparse.Namespace, length: int) -> None:
    """Where the time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    model = load(args.model, args.layers, args.dtype, args.device)
    work = ways(model, length)["layer by layer"]
    ways(model, 512)["layer by layer"]()
    on_gpu = args.device == "cuda"
    with record(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        work()
    spent = {
        each.key: each.self_device_time_total if on_gpu else each.self_cpu_time_total for each in found.key_averages()
    }
    total = sum(spent.values())
    kernels = ("scaled_dot_product", "aten::mm", "aten::addmm", "aten::bmm", "gemm", "flash", "fmha", "cutlass")
    within = sum(value for key, value in spent.items() if any(part in key for part in kernels))
    print(
        f"{args.model}, {format_length(length)} tokens: {within / total:.1%} in attention kernels and matrix products"
    )
    for key, value in sorted(spent.items(), key=lambda each: -each[1])[:12]:
        print(f"  {value / total:6.1%}  {key}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lengths", "against", "profile", "gpu", "one"))
    parser.add_argument("--model", default="demo", choices=("demo", *SHAPES))
    parser.add_argument("--layers", type=int)
    parser.add_argument("--lengths", default="8k,16k,32k,64k,128k", type=parse_lengths)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", help="JSON Lines of what is known")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.what == "one":
        print(json.dumps(measure(args)))
    elif args.what == "lengths":
        lengths(args, [(args.model, args.layers, length) for length in args.lengths])
    elif args.what == "against":
        against(args)
    elif args.what == "profile":
        for length in args.lengths:
            profile(args, length)
    elif args.device != "cuda":
        parser.error("gpu needs one that torch can use")
    else:
        lengths(args, ON_GPU)


if __name__ == "__main__":
    main()
