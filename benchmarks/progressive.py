"""Progressive against direct: two stages of search and fine-tuning against one at the last length, on as many tokens.

Both ways extend the embedded model to 2048 tokens: one by way of 1024, with half of the tokens there; the other at
once. Both train on the same number of tokens, score the same number of candidates at the last length, and are judged
on modules that neither has seen. Every run is a recipe, so the same command goes on where it was interrupted.

    python benchmarks/progressive.py --output runs/progressive
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from longrope.cli.progress import ConsoleProgress
from longrope.demo.corpus import write_texts
from longrope.pipeline.recipe import read_recipe
from longrope.pipeline.run import extend

LENGTHS = (256, 1024, 2048)
ALGORITHM = {
    "algorithm": "paper",
    "population": 3,
    "parents": 2,
    "mutations": 10,
    "crossovers": 5,
    "mutation_probability": 0.15,
}
TRAINING = {"global_batch": 1, "warmup": 5, "precision": "fp32", "zero": 0, "save_steps": 25}


def recipe(texts: Any, seed: int, lengths: list[int], tokens: int, args: argparse.Namespace) -> dict[str, Any]:
    """Search and fine-tuning at every one of ``lengths``, with equal shares of the tokens, and the evaluation."""
    stages: list[dict[str, Any]] = []
    for length in lengths:
        algorithm = {
            **ALGORITHM,
            "iterations": args.iterations,
            "n_hat": [0],
            "attention_factor": args.attention_factor,
        }
        steps = tokens // len(lengths) // length
        stages += [
            {"search": {"target_length": length, "data": {"samples": 4, "held_out": 0}, "algorithm": algorithm}},
            {
                "finetune": {
                    "seq_length": length,
                    "steps": steps,
                    "learning_rate": args.lr,
                    "memory": {"checkpoint_activations": False},
                    **TRAINING,
                }
            },
        ]
    stages.append(
        {"evaluate": {"suite": "perplexity", "lengths": list(LENGTHS), "samples": 16, "methods": ["longrope"]}}
    )
    return {
        "model": "demo",
        "seed": seed,
        "data": {
            "training": str(texts.training),
            "documents": {"source": str(texts.search)},
            "evaluation": {"source": str(texts.evaluation)},
        },
        "execution": {"workers": args.workers},
        "stages": stages,
    }


def main() -> None:
    """Run all of it, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=100 * 2048)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--attention-factor", type=float, default=1.1726, help="of both ways, in every stage")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    texts = write_texts(args.output / "texts")
    ways = {"progressive": [1024, 2048], "direct": [2048]}
    found: dict[str, list[dict[int, float]]] = {way: [] for way in ways}
    with ConsoleProgress() as progress:
        for seed in args.seeds:
            for way, lengths in ways.items():
                file = args.output / f"{way}-{seed}.yaml"
                file.write_text(yaml.safe_dump(recipe(texts, seed, lengths, args.tokens, args), sort_keys=False))
                report = extend(read_recipe(file), args.output / f"{way}-{seed}", progress)
                *_, evaluation = report.state.stages.values()
                found[way].append({row["length"]: row["perplexity"] for row in evaluation.results["table"]})
    print(f"\n| | {' | '.join(f'perplexity at {length}' for length in LENGTHS)} |\n|---|{'---|' * len(LENGTHS)}")
    for way, runs in found.items():
        print(f"| {way} | {' | '.join(_spread([run[length] for run in runs]) for length in LENGTHS)} |")
    pairs = list(zip(found["progressive"], found["direct"], strict=True))
    for length in LENGTHS:
        changes = [100 * (staged[length] / direct[length] - 1) for staged, direct in pairs]
        print(f"progressive over direct at {length}: {_spread(changes, '+.2f')} %")


def _spread(values: list[float], form: str = ".3f") -> str:
    return f"{mean(values):{form}}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
