"""Candidates scored per second, by how many are in one forward pass, on a GPU or a CPU.

    python benchmarks/search_batches.py --lengths 2k,8k                     # the embedded model
    python benchmarks/search_batches.py --model MODEL --lengths 2k,8k,32k   # a folder or a hub id

Ids are random, and candidates differ as those of a search do; the fastest of five passes counts, after one more. On a
GPU there are two more figures: utilisation, the share of the peak of its data sheet that the operations make up,
counting causal attention only; and the share of a pass in which it is busy with kernels and copies, by PyTorch's
profiler. The end tells the batch that a search with one worker would settle on. torch and transformers do; longrope
need not be installed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.search.batching import LONGEST_MEASURED, worthwhile_rows

REPEATS = 5


@dataclass(frozen=True)
class Pass:
    """A forward pass of so many candidates over a text, with its loss."""

    model: Any
    factors: RopeFactors
    length: int
    rows: int

    def run(self) -> None:
        """Returns when all is done, for the result is on the host."""
        ids = torch.randint(self.model.config.vocab_size, (self.length,), generator=torch.Generator().manual_seed(0))
        score_blocks(self.model, ids, [self.factors.replace(n_hat=2 * row) for row in range(self.rows)])

    def seconds(self) -> float:
        """Of the fastest of a few, after one that does not count; infinite where memory is not enough."""
        taken = []
        try:
            for _ in range(REPEATS + 1):
                started = time.perf_counter()
                self.run()
                taken.append(time.perf_counter() - started)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return math.inf
        return min(taken[1:])

    def busy(self) -> float:
        """Seconds of a pass in which the GPU has something to do."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            self.run()
        return sum(each.self_device_time_total for each in profiled.key_averages()) / 1e6


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each length and number of rows; those of the profiler come last, since it slows down what follows."""
    source = ModelSource(args.model, dtype=args.dtype, device=args.device)
    model = source.load_model()
    rope, shape = read_rope(model.config, source.folder(weights=False)), ModelShape.of(model.config)
    peak = peak_flops(device_name(args.device), "bf16" if args.dtype == "bfloat16" else "fp32")
    found, passes = [], []
    for length in args.lengths:
        factors = yarn(rope.present, max(length, 2 * rope.present.target_length))
        rows = 1
        while rows <= args.most and math.isfinite(seconds := (one := Pass(model, factors, length, rows)).seconds()):
            line = {"length": length, "rows": rows, "seconds": seconds / rows, "per_second": rows / seconds}
            if peak is not None:
                line["utilisation"] = rows * forward_flops(shape, length, length - 1) / seconds / peak
            found.append(line)
            passes.append(one)
            print(f"{format_length(length)}, {rows}: {rows / seconds:.2f} candidates/s", file=sys.stderr)
            rows *= 2
    if args.device == "cuda":
        for line, one in zip(found, passes, strict=True):
            line["busy"] = one.busy() / (line["seconds"] * line["rows"])
    return found


def device_name(device: str) -> str | None:
    """Of the GPU; None on a CPU."""
    return Hardware.here().name if device == "cuda" else None


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "| tokens | candidates in a pass | candidates/s | against one | utilisation | busy |"
    yield "|---|---|---|---|---|---|"
    alone = {line["length"]: line["seconds"] for line in found if line["rows"] == 1}
    for line in found:
        shares = (line.get("utilisation"), line.get("busy"))
        cells = [format_length(line["length"]), str(line["rows"]), f"{line['per_second']:.2f}"]
        cells += [f"{alone[line['length']] / line['seconds']:.2f}"]
        cells += ["" if share is None else f"{100 * share:.0f}%" for share in shares]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(model_folder()))
    parser.add_argument("--lengths", type=parse_lengths, default=parse_lengths("2k,8k"))
    parser.add_argument("--most", type=int, default=32, help="candidates in one pass at most")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="bfloat16 on GPUs when not given")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; a search gives each worker one")
    parser.add_argument("--output", type=Path, help="a file that receives a line of JSON for each row of the table")
    args = parser.parse_args()
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    torch.set_num_threads(args.threads)
    found = measured(args)
    print(f"{args.model}, {args.dtype}, {device_name(args.device) or 'cpu'}, torch {torch.__version__}\n")
    print("\n".join(table(found)), end="\n\n")
    if args.output:
        lines = ({"model": args.model, "dtype": args.dtype, **line} for line in found)
        args.output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for length in args.lengths:
        # Neither a CPU nor a text that fills any GPU is measured.
        measures = args.device == "cuda" and length <= LONGEST_MEASURED
        seconds = [line["seconds"] for line in found if line["length"] == length]
        print(f"a search at {format_length(length)}: {worthwhile_rows(seconds) if measures else 1} in a pass")


if __name__ == "__main__":
    main()
