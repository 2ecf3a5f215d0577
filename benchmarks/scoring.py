"""Time and memory of scoring long samples, beside what the hardware can do and beside plain transformers.

    python benchmarks/scoring.py lengths                    # the embedded model at 8k to 128k tokens
    python benchmarks/scoring.py against                    # in turns with a plain pass and with transformers' own loss
    python benchmarks/scoring.py profile --lengths 32k      # share of the time in matrix products and attention
    python benchmarks/scoring.py gpu --output scoring.jsonl # LLaMA2-7B and LLaMA3-8B shapes at 128k to 2m; one GPU

Operations are those of a forward pass with half of the square of attention; the peak is that of the device's own matrix
products. Memory is the most above the loaded model. Each figure is from a process of its own, as is the peak beside it.
With --output every figure is written down when it is known, and not measured again; what failed is tried again, unless
memory ran out. With --budget what would take longer than the seconds that are left is skipped, so that a run that may
be cut off spends its time on what it finishes: run it again with the same --output for the rest. It counts from the
start, without Python's imports.

`gpu` begins with what matters most. At 1m and 2m the models have 2 of their 32 layers; a row of its own extrapolates
their time to all layers by the operations, and says so. It needs torch, transformers and accelerate, and runs from a
checkout that is not installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

if (spec := find_spec("longrope")) is None or spec.origin is None:  # a folder of that name alone is no package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH"))))

from longrope.demo import model_folder
from longrope.finetune.flops import forward_flops
from longrope.finetune.model_shape import ModelShape
from longrope.lengths import format_length, parse_lengths
from longrope.model import scoring_plan
from longrope.model.layer_by_layer import is_out_of_memory
from longrope.model.load import DTYPES
from longrope.model.rope_config import read_rope
from longrope.model.score import score_blocks
from longrope.rope.methods import yarn
from longrope.runs.peak_memory import PeakMemory
from longrope.sizes import MIB, format_size

OUT_OF_MEMORY = "out of memory"
START_SECONDS = 20.0
"""What a process takes beside the measured pass, as long as none was measured."""
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
# The most important first, as a run may be cut off. What all layers would take too long for has 2.
ON_GPU = [
    *((name, 32, length) for length in (131072, 262144) for name in ("llama-2-7b", "llama-3-8b")),
    ("llama-2-7b", 2, 2097152),
    ("llama-2-7b", 32, 524288),
    ("llama-3-8b", 32, 524288),
    ("llama-3-8b", 2, 2097152),
    ("llama-2-7b", 2, 1048576),
    ("llama-3-8b", 2, 1048576),
]


def config_of(name: str, layers: int | None) -> Any:
    from transformers import AutoConfig, LlamaConfig

    if name == "demo":
        return AutoConfig.from_pretrained(model_folder())
    return LlamaConfig(**{**SHAPES[name], **({"num_hidden_layers": layers} if layers else {})})


@lru_cache
def operations(name: str, layers: int | None, length: int) -> float:
    """Of scoring ``length`` tokens."""
    return forward_flops(ModelShape.of(config_of(name, layers)), length, length - 1)


def load(name: str, layers: int | None, dtype: str, device: str) -> Any:
    """The embedded model, or random weights in the shape of another."""
    from transformers import AutoModelForCausalLM

    if name == "demo":
        model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=DTYPES[dtype])
        return model.to(device).eval().requires_grad_(False)
    with torch.device(device):
        torch.set_default_dtype(DTYPES[dtype])
        try:
            return AutoModelForCausalLM.from_config(config_of(name, layers)).eval().requires_grad_(False)
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
    """Operations a second of large products of square matrices: back to back on a GPU, the best of a few on a CPU."""
    size, tries, products, warm_up = (8192, 1, 50, 10) if device == "cuda" else (2048, 4, 1, 1)
    left, right = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    result = torch.empty_like(left)

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(left, right, out=result)

    multiply(warm_up)
    seconds = min(timed(lambda: multiply(products), device)[0] for _ in range(tries))
    return products * 2 * size**3 / seconds


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def device_name(device: str) -> str:
    """What the driver or the system calls the device."""
    if device == "cuda":  # which takes memory of the GPU as long as the process that asks lives
        code = "import torch; print(torch.cuda.get_device_name())"
        done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout.splitlines()[-1].strip()
    processors = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)", processors.read_text(), re.MULTILINE) if processors.exists() else None
    return named[1].strip() if named else platform.machine()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One way at one length, and the peak, in this process."""
    try:
        found = scored(args)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found = {"failed": OUT_OF_MEMORY}
    if args.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    # Afterwards, as what it leaves with the allocator would be missing in the memory of the pass.
    return {**found, "peak": matmul_peak(args.dtype, args.device)}


def scored(args: argparse.Namespace) -> dict[str, Any]:
    model = load(args.model, args.layers, args.dtype, args.device)
    ways(model, 64)[args.way]()  # what the first call allocates for good is part of a loaded model
    work = ways(model, args.length)[args.way]
    peak = PeakMemory(args.device == "cuda")
    seconds, loss = timed(work, args.device)
    memory = peak.above
    return {
        "seconds": seconds,
        "loss": loss,
        "memory": memory,
        "flops": operations(args.model, args.layers, args.length),
    }


class Records:
    """What is known: of this run, and what the file tells of earlier ones.

    Args:
        path: JSON Lines, which new figures are added to; None keeps them in this run alone.
    """

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._all: list[dict[str, Any]] = []
        self._cut = False
        if self._path and self._path.exists():
            text = self._path.read_text(errors="replace")
            self._cut = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                try:
                    self._all.append(dict(json.loads(line)))
                except (TypeError, ValueError):  # a write that was cut off
                    continue
        elif self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def find(self, what: dict[str, Any]) -> dict[str, Any] | None:
        """What is known of it: figures, or that memory does not do."""
        for each in self._all:
            if _like(each, what) and each.get("failed") in (None, OUT_OF_MEMORY):
                return each
        return None

    def add(self, found: dict[str, Any]) -> None:
        self._all.append(found)
        if self._path:
            with self._path.open("a") as file:
                file.write(("\n" if self._cut else "") + json.dumps(found) + "\n")
            self._cut = False

    def foresee(self, what: dict[str, Any], flops: float) -> float:
        """Seconds of a process with so many operations at the best rate so far; without one, of its start alone."""
        alike = {name: what[name] for name in ("way", "dtype", "device", "device_name", "threads")}
        known = [each for each in self._all if _like(each, alike) and "failed" not in each]
        rate = max((each["flops"] / each["seconds"] for each in known), default=math.inf)
        starts = [each["wall"] - each["seconds"] for each in known]
        return (median(starts) if starts else START_SECONDS) + flops / rate


def _like(record: dict[str, Any], what: dict[str, Any]) -> bool:
    return all(name in record and record[name] == value for name, value in what.items())


def asked(
    args: argparse.Namespace, way: str, model: str, layers: int | None, length: int, repeat: int = 0
) -> dict[str, Any]:
    """What a figure is known by."""
    common = {name: getattr(args, name) for name in ("dtype", "device", "device_name", "threads")}
    return {"model": model, "layers": layers, "way": way, "length": length, "repeat": repeat, **common}


def apart(records: Records, what: dict[str, Any]) -> dict[str, Any]:
    """Its figures from a process of its own, unless they are known."""
    known = records.find(what)
    if known is not None:
        return known
    words = [
        word
        for name, value in what.items()
        if value is not None and name != "device_name"
        for word in (f"--{name}", str(value))
    ]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "one", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        figures = {"failed": _reason(done.returncode, done.stderr), "peak": None}
    else:
        figures = {**json.loads(done.stdout.splitlines()[-1]), "wall": time.perf_counter() - started}
    found = {**what, **figures, "torch": torch.__version__}
    records.add(found)
    return found


def _reason(status: int, told: str) -> str:
    """Why a process failed: the last line that it wrote, unless it was killed."""
    if status < 0:
        return f"killed by signal {-status}"
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with status {status}"


def lengths(args: argparse.Namespace, records: Records, cells: list[tuple[str, int | None, int]]) -> None:
    """A row a length: time beside what the operations say, and memory."""
    print(f"{args.device_name}, {args.dtype}", flush=True)
    print("| model | layers | tokens | seconds | tokens/s | TFLOP/s | of the peak | time / operations | memory |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    first: dict[str, float] = {}
    for model, layers, length in cells:
        what = asked(args, "layer by layer", model, layers, length)
        cell = f"| {model} | {layers or ''} | {format_length(length)} |"
        if records.find(what) is None:
            expected = records.foresee(what, operations(model, layers, length))
            left = max(args.ends - time.perf_counter(), 0.0)
            if expected > left:
                print(f"{cell} skipped: {expected:,.0f} s expected, {left:,.0f} s left | | | | | |", flush=True)
                continue
            print(f"{model}, {format_length(length)} tokens: {expected:,.0f} s or more", file=sys.stderr, flush=True)
        found = apart(records, what)
        if "failed" in found:
            print(f"{cell} {found['failed']} | | | | | |", flush=True)
            continue
        rate = found["flops"] / found["seconds"]
        share = found["seconds"] / found["flops"]
        relative = share / first.setdefault(f"{model}/{layers}", share)
        memory = "unknown" if found["memory"] is None else format_size(found["memory"], measured=True)
        print(
            f"{cell} {found['seconds']:.2f} | {length / found['seconds']:,.0f} | {rate / 1e12:.3g} | "
            f"{rate / found['peak']:.0%} of {found['peak'] / 1e12:.3g} | {relative:.2f} | {memory} |",
            flush=True,
        )
        whole = SHAPES.get(model, {}).get("num_hidden_layers")
        if layers and whole and layers < whole:
            # Embedding and logits are there once, however many layers.
            seconds = found["seconds"] * operations(model, whole, length) / found["flops"]
            extrapolated = f"{seconds:,.0f} extrapolated, not measured"
            print(f"| {model} | {whole} | {format_length(length)} | {extrapolated} | | | | | |", flush=True)


def against(args: argparse.Namespace, records: Records) -> None:
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
            way: [
                apart(records, asked(args, way, name, None, length, repeat)).get("memory")
                for repeat in range(args.pairs)
            ]
            for way in both
        }
        print(f"\n{name}, {format_length(length)} tokens, {args.dtype}, {args.pairs} pairs in turns")
        for way, times in seconds.items():
            used = ", ".join("unknown" if each is None else f"{each / MIB:.0f}" for each in memory[way])
            print(f"  {way}: {min(times):.3f} s at best, {median(times):.3f} s median; {used} MiB")
        ours, theirs = seconds["layer by layer"], seconds[other]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(f"  time ratio of the pairs: {min(ratios):.3f} to {max(ratios):.3f}, median {median(ratios):.3f}")
        if None not in [*memory["layer by layer"], *memory[other]]:
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
    parser.add_argument("--budget", type=float, help="seconds that lengths and gpu may take; without, all they need")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.ends = time.perf_counter() + (math.inf if args.budget is None else args.budget)
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.what == "one":
        print(json.dumps(measure(args)))
        return
    if args.what == "profile":
        for length in args.lengths:
            profile(args, length)
        return
    if args.what == "gpu" and args.device != "cuda":
        parser.error("gpu needs one that torch can use")
    args.device_name = device_name(args.device)
    records = Records(args.output)
    if args.what == "against":
        against(args, records)
    else:
        cells = ON_GPU if args.what == "gpu" else [(args.model, args.layers, length) for length in args.lengths]
        lengths(args, records, cells)


if __name__ == "__main__":
    main()
