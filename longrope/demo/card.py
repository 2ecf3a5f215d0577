"""The embedded model's card: ``python -m longrope.demo.card`` measures the model, draws its loss curve, writes both."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from longrope.demo import model_folder
from longrope.files import write_text_atomically

CARD = """\
---
license: apache-2.0
library_name: transformers
tags: [rope, long-context, code]
---

# The embedded model of longrope

A Llama with {parameters:,} parameters (6 layers, hidden 256, 4 heads of 64, rope_theta 10000, tied embeddings,
bfloat16) and a context window of {window} tokens. It exists so that every part of longrope can be run, tested and
measured on a trained model without a download. It is far too small to be of use for anything else.

## Text

The source of the standard library of Python {python}: three quarters of the modules for training, a quarter held
out, split by a hash of the module's path (`longrope/demo/corpus.py`). Tests and generated tables are left out.
About {retrieval:.0%} of the training rows hide a number in plain sentences or source text and ask for it
(`longrope/demo/retrieval.py`). The tokenizer is a byte-level BPE with {vocabulary} entries that splits numbers into
single digits. On another Python version the held-out modules have another text, and a module that was renamed since
may have been trained on under its old name.

## Training

    python -m longrope.demo.train --output DIR{flags}

{steps} steps of {batch} rows ({tokens:,} tokens), AdamW (betas 0.9, 0.95; weight decay {weight_decay}), learning
rate {learning_rate} with {warmup} steps of warm-up and a cosine to 2% of it, float32 on two CPU cores, seed {seed}.
{plan} Settings are in `training.json`, the losses of every 100 steps in `loss.jsonl`.

![Loss per token against tokens seen: training rows, and the first {window} tokens of held-out modules](loss.png)

## Figures

    python -m longrope.demo.measure

| on held-out modules of Python {measured_python}, float32 | |
|---|---|
| perplexity per token, all whole windows of {window} tokens ({windows}) | {perplexity:.2f} |
| bits per byte | {bits_per_byte:.3f} |
{retrieval_rows}
"""


def write_card(folder: Path, measured: dict[str, Any]) -> None:
    """Write ``README.md`` and ``loss.png`` into the model's folder, from its records and what was measured."""
    training = json.loads((folder / "training.json").read_text())
    losses = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    config = json.loads((folder / "config.json").read_text())
    plot_loss(losses, folder / "loss.png")
    flags = "".join(f" --earlier-plan {until} {steps}" for until, steps in training["earlier_plans"])
    plan = " ".join(
        f"Until step {until} the cosine was that of a run of {steps} steps, which was then shortened."
        for until, steps in training["earlier_plans"]
    )
    rows = [
        f"| {name}, {measured['trials']} trials in texts of {training['window']} tokens | {value:.0%} |"
        for name, value in measured.items()
        if name.startswith("retrieval")
    ]
    text = CARD.format(
        **{name: value for name, value in training.items() if name != "earlier_plans"},
        parameters=measured["parameters"],
        tokens=losses[-1]["tokens"],
        retrieval=training["retrieval_share"],
        plan=plan,
        flags=flags,
        measured_python=measured["python"],
        windows=measured["windows"],
        perplexity=measured["perplexity"],
        bits_per_byte=measured["bits_per_byte"],
        retrieval_rows="\n".join(rows),
    )
    assert config["max_position_embeddings"] == training["window"], "the card is about another model"
    write_text_atomically(folder / "README.md", text)


def plot_loss(losses: list[dict[str, float]], path: Path) -> None:
    """Training and held-out loss against tokens seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    tokens = [line["tokens"] / 1e6 for line in losses]
    axes.plot(tokens, [line["loss"] for line in losses], color="#0072B2", label="training rows")
    axes.plot(
        tokens, [line["held_out_loss"] for line in losses], color="#D55E00", label="held out, first tokens of modules"
    )
    axes.set_xlabel("million tokens")
    axes.set_ylabel("loss per token (nats)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    """The command line of the card."""
    from longrope.demo.measure import measure

    parser = argparse.ArgumentParser(description="Measure the embedded model and write its card.")
    parser.add_argument("folder", type=Path, nargs="?", default=model_folder())
    args = parser.parse_args()
    write_card(args.folder, measure(args.folder))


if __name__ == "__main__":
    main()
