"""Candidates scored per second, by how many are in one forward pass, on a GPU or a CPU.

    python benchmarks/search_batches.py --lengths 2k,8k                     # the embedded model
    python benchmarks/search_batches.py --model MODEL --lengths 2k,8k,32k   # a folder or a hub id

Ids are random, and candidates differ as those of a search do; the fastest of five passes counts, after one more.
Utilisation is the share of the GPU's peak by its data sheet that the operations of the passes make up, with half of the
square of attention; "busy" is the share of the time in which kernels ran, by PyTorch's profiler. The end tells which
batch a search would settle on. torch and transformers do; longrope need not be installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

if (spec := find_spec("longrope")) is None or spec.origin is None:  # a folder of that name alone is no package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from longrope.demo import model_folder
from longrope.finetune.flops import forward_flops
from longrope.finetune.hardware import Hardware, peak_flops
from longrope.finetune.model_shape import ModelShape
from longrope.lengths import format_length, parse_lengths
from longrope.model.load import ModelSource
from longrope.model.memory_retries import is_out_of_memory
from longrope.model.rope_config import read_rope
from longrope.model.score import score_blocks
from longrope.rope.methods import yarn
from longrope.search.batching import worthwhile_rows

REPEATS = 5


def measure(model: Any, factors: Any, length: int, rows: int) -> float:
    """Seconds per candidate."""
    ids = torch.randint(model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    candidates = [factors.replace(n_hat=2 * row) for row in range(rows)]
    score_blocks(model, ids, candidates)
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        score_blocks(model, ids, candidates)  # its result is on the host: all is done
        taken.append(time.perf_counter() - started)
    return min(taken) / rows


def busy(model: Any, factors: Any, length: int, rows: int) -> float:
    """Share of a pass in which the GPU computes."""
    from torch.profiler import ProfilerActivity, profile

    ids = torch.randint(model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    candidates = [factors.replace(n_hat=2 * row) for row in range(rows)]
    started = time.perf_counter()
    score_blocks(model, ids, candidates)
    seconds = time.perf_counter() - started  # without the profiler, which slows the host down
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        score_blocks(model, ids, candidates)
    return sum(each.self_device_time_total for each in profiled.key_averages()) / 1e6 / seconds


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    on_gpu = args.device == "cuda"
    source = ModelSource(args.model, dtype=args.dtype, device=args.device)
    model = source.load_model()
    rope, shape = read_rope(model.config, source.folder(weights=False)), ModelShape.of(model.config)
    peak = peak_flops(Hardware.here().name, "bf16" if args.dtype == "bfloat16" else "fp32") if on_gpu else None
    for length in args.lengths:
        factors = yarn(rope.present, max(length, 2 * rope.present.target_length))
        rows = 1
        while rows <= args.most:
            try:
                seconds = measure(model, factors, length, rows)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                break
            found = {"length": length, "rows": rows, "seconds": seconds, "per_second": 1 / seconds}
            if peak is not None:
                found["utilisation"] = forward_flops(shape, length, length - 1) / seconds / peak
            if on_gpu:
                found["busy"] = busy(model, factors, length, rows)
            yield found
            rows *= 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(model_folder()))
    parser.add_argument("--lengths", type=parse_lengths, default=parse_lengths("2k,8k"))
    parser.add_argument("--most", type=int, default=32, help="candidates in one pass at most")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="bfloat16 on GPUs when not given")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; a search gives each worker one")
    parser.add_argument("--output", type=Path, help="a file that receives a line of JSON for each row of the table")
    args = parser.parse_args()
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    torch.set_num_threads(args.threads)
    print(f"{args.model}, {args.dtype}, {Hardware.here().name or 'cpu'}, torch {torch.__version__}\n")
    print(
        "| tokens | candidates in a pass | candidates/s | against one | utilisation | busy |\n|---|---|---|---|---|---|"
    )
    known: dict[int, list[float]] = {}
    for found in measured(args):
        length, shares = found["length"], [found.get(name) for name in ("utilisation", "busy")]
        all_seconds = known.setdefault(length, [])
        all_seconds.append(found["seconds"])
        cells = [format_length(length), str(found["rows"]), f"{found['per_second']:.2f}"]
        cells += [f"{all_seconds[0] / found['seconds']:.2f}"]
        cells += ["" if share is None else f"{100 * share:.0f}%" for share in shares]
        print(f"| {' | '.join(cells)} |", flush=True)
        if args.output:
            with args.output.open("a") as file:
                file.write(json.dumps({"model": args.model, "dtype": args.dtype, **found}) + "\n")
    for length, seconds in known.items():
        print(f"\na search at {format_length(length)} settles on {worthwhile_rows(seconds)}", end="")
    print()


if __name__ == "__main__":
    main()
