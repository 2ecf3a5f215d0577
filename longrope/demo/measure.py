"""Measure the embedded model: ``python -m longrope.demo.measure`` prints perplexity, bits per byte and retrieval.

Perplexity is that of whole held-out modules cut into windows of 256 tokens, each scored from its own first token.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from longrope.demo import model_folder
from longrope.demo.corpus import python_version, standard_library
from longrope.demo.retrieval import make_example
from longrope.demo.train import WINDOW


@torch.inference_mode()
def held_out_perplexity(model: Any, tokenizer: Any, window: int = WINDOW, limit: int | None = None) -> dict[str, float]:
    """Perplexity per token and bits per byte over the held-out modules, in windows of ``window`` tokens.

    The first token of a window is given, not predicted, and neither it nor its bytes count. A rest shorter than a
    window is left out.

    Args:
        limit: stop after that many windows.
    """
    rows = []
    for module in standard_library():
        if module.held_out:
            ids = tokenizer(module.text, verbose=False)["input_ids"]
            rows += [ids[at : at + window] for at in range(0, len(ids) - window + 1, window)]
    rows = rows[:limit]
    nll, tokens, octets = 0.0, 0, 0
    for start in range(0, len(rows), 16):
        batch = torch.tensor(rows[start : start + 16], device=model.device)  # (B, T)
        logits = model(batch).logits[:, :-1].float()
        nll += float(functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
        tokens += batch[:, 1:].numel()
    for row in rows:
        octets += len(tokenizer.decode(row[1:], skip_special_tokens=True).encode())
    return {
        "windows": len(rows),
        "perplexity": math.exp(nll / tokens),
        "bits_per_byte": nll / octets / math.log(2),
    }


@torch.inference_mode()
def retrieval_accuracy(
    model: Any, tokenizer: Any, length: int = WINDOW, trials: int = 50, seed: int = 0, keyed: int = 0
) -> float:
    """Share of hidden numbers retrieved exactly, by greedy generation, in texts of ``length`` tokens.

    Half of the texts are filled with plain sentences and half with held-out source; depths are spread evenly.
    """
    rng = random.Random(seed)
    texts = [module.text for module in standard_library() if module.held_out and len(module.text) > 12 * length]
    correct = 0
    for trial in range(trials):
        filler = None
        if trial % 2:
            text = rng.choice(texts)[: 12 * length]
            filler = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        depth = trial / max(trials - 1, 1)
        example = make_example(tokenizer, length, rng, filler=filler, depth=depth, keyed=keyed)
        ids = torch.tensor([example.prompt], device=model.device)
        new = model.generate(ids, max_new_tokens=len(example.answer), do_sample=False, pad_token_id=1)
        correct += new[0, len(example.prompt) :].tolist() == example.answer
    return correct / trials


def measure(folder: Path, trials: int = 50, seed: int = 0, windows: int | None = None) -> dict[str, Any]:
    """All figures of the model in ``folder``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    result: dict[str, Any] = {
        "python": python_version(),
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        **held_out_perplexity(model, tokenizer, limit=windows),
        "trials": trials,
    }
    for name, keyed in (("passkey", 0), ("named number", 1), ("one of two named numbers", 2)):
        result[f"retrieval, {name}"] = retrieval_accuracy(model, tokenizer, trials=trials, seed=seed, keyed=keyed)
    return result


def main() -> None:
    """The command line of the measurement."""
    parser = argparse.ArgumentParser(description="Measure the embedded model on held-out text.")
    parser.add_argument("--model", type=Path, default=model_folder())
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--windows", type=int, default=None, help="windows to score at most (all)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(measure(args.model, args.trials, args.seed, args.windows), indent=2))


if __name__ == "__main__":
    main()
