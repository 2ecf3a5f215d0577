"""Speed of generation by the length of the prompt, with and without a RoPE policy attached.

The same prompt is read and continued greedily by the plain model and under a policy, in turn, so that whatever slows
the machine down slows both. The first pass of each length is not counted.

    python benchmarks/generation.py
    python benchmarks/generation.py MODEL --factors factors.json --lengths 4k,32k,128k --dtype bfloat16 --device cuda
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
from transformers.utils import logging

from longrope.demo import model_folder
from longrope.lengths import format_length, parse_lengths
from longrope.model.attach import attached
from longrope.model.rope_config import ModelRope
from longrope.rope.methods import yarn
from longrope.rope.policy import FactorSchedule, RopePolicy, load_factors
from longrope.runs.model import open_model
from longrope.workers.settings import ExecutionSettings

PLAIN, ATTACHED = "plain", "policy attached"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(model_folder()), help="a model folder or a hub id")
    parser.add_argument("--factors", help="factors or a schedule (JSON); YaRN for the longest length when not given")
    parser.add_argument("--lengths", default="256,512,1024,2048", help="tokens of the prompts")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded = open_model(args.model, ExecutionSettings(dtype=args.dtype, device=args.device))
    model, lengths = loaded.source.load_model(), parse_lengths(args.lengths)
    policy = _policy(loaded.rope, max(lengths) + args.new_tokens, args.factors)
    print("| prompt | tokens/s read, plain | policy attached | tokens/s written, plain | policy attached |")
    print("|---|---|---|---|---|")
    for length in lengths:
        ids = torch.randint(
            5, model.config.vocab_size - 5, (1, length), device=model.get_input_embeddings().weight.device
        )
        passes: dict[str, list[tuple[float, float]]] = {PLAIN: [], ATTACHED: []}
        for turn in range(args.repeats + 1):  # neither is always the one that goes first
            for way in (PLAIN, ATTACHED) if turn % 2 else (ATTACHED, PLAIN):
                passes[way].append(_generate(model, ids, args.new_tokens, policy if way == ATTACHED else None))
        read, written = (
            {way: median(each[index] for each in found[1:]) for way, found in passes.items()} for index in (0, 1)
        )
        cells = [f"{length / read[way]:.0f}" for way in passes]
        cells += [f"{(args.new_tokens - 1) / written[way]:.1f}" for way in passes]
        print(f"| {format_length(length)} | {' | '.join(cells)} |", flush=True)
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, {args.threads} threads"
    print(
        json.dumps({"device": device, "dtype": str(model.dtype), "repeats": args.repeats, "torch": torch.__version__})
    )


def _policy(rope: ModelRope, longest: int, factors: str | None) -> RopePolicy:
    given = load_factors(factors) if factors else yarn(rope.present, longest)
    return given if isinstance(given, FactorSchedule) else rope.extended_by(given)


def _generate(model: Any, ids: torch.Tensor, new_tokens: int, policy: RopePolicy | None) -> tuple[float, float]:
    """Seconds to the first token, and from there to the last."""
    length = ids.shape[1] + new_tokens
    with torch.inference_mode(), attached(model, policy, length=length) if policy else nullcontext():
        first = _seconds(model, ids, 1)
        return first, _seconds(model, ids, new_tokens) - first


def _seconds(model: Any, ids: torch.Tensor, new_tokens: int) -> float:
    if ids.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    if ids.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
