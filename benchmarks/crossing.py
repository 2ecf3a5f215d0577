"""What a cache does to texts that grow into another window, on the embedded model: plain transformers beside longrope.

python benchmarks/crossing.py --texts 8
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import longrope
from longrope.demo import model_folder
from longrope.demo.corpus import standard_library
from longrope.export.huggingface import export_folder
from longrope.model.attach import attached
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.rope.methods import yarn
from longrope.rope.policy import FactorSchedule, Window

PROMPT, NEW, TARGET = 240, 64, 2048  # the pretraining length, 256, lies in between


def generate(model: Any, ids: torch.Tensor, **options: Any) -> tuple[torch.Tensor, float]:
    """Greedy continuations (B, NEW), and the seconds they took."""
    started = time.perf_counter()
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, eos_token_id=None, **options
    )
    return out[:, ids.shape[1] :], time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    source = ModelSource(str(model_folder()))
    tokenizer = source.load_tokenizer()
    rope = read_rope(source.load_config(), source.folder())
    far = yarn(rope.present, TARGET)
    # One attention factor for both windows, so that plain transformers can say the same.
    near = rope.present.replace(attention_factor=far.attention_factor)
    schedule = FactorSchedule((Window(rope.window, near), Window(TARGET, far)))
    encoded = (tokenizer(module.text, verbose=False)["input_ids"] for module in standard_library() if module.held_out)
    prompts = torch.tensor([ids[:PROMPT] for ids in islice((e for e in encoded if len(e) >= PROMPT), args.texts)])

    with tempfile.TemporaryDirectory() as folder:
        exported = export_folder(source, schedule, Path(folder) / "extended").folder
        plain = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
        runs = {
            "plain transformers, no cache": generate(plain, prompts, use_cache=False),
            "plain transformers, cache": generate(plain, prompts),
        }
    for window in ("recompute", "reserve"):
        model = longrope.load(str(source.folder()), schedule, dtype="float32", window=window)
        if window == "recompute":
            runs["longrope.load, no cache"] = generate(model, prompts, use_cache=False)
        runs[f"longrope.load, cache, {window}"] = generate(model, prompts)
        model.longrope.detach()
    uncached = runs["longrope.load, no cache"][0]
    judge = source.load_model()
    print(f"{len(prompts)} prompts of {PROMPT} tokens, {NEW} new ones each, {args.threads} thread(s)\n")
    print("| | tokens as without a cache | perplexity of the new text | seconds |")
    print("|---|---|---|---|")
    for name, (new, seconds) in runs.items():
        with attached(judge, far):
            logits = judge(torch.cat([prompts, new], dim=1), use_cache=False).logits[:, PROMPT - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), new.flatten()).item()
        same = (new == uncached).float().mean().item()
        print(f"| {name} | {same:.1%} | {math.exp(nll):.2f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
