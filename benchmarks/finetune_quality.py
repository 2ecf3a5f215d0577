"""What fine-tuning the embedded model under searched factors gains, and what it costs at the old length.

Every way to train sees the same number of tokens of Python's standard library, three seeds each, and is judged on
modules that neither training nor the search nor the choice of settings has seen.

    longrope demo --output longrope-demo
    python benchmarks/finetune_quality.py --factors longrope-demo/factors.json --output finetune-quality
    python benchmarks/finetune_quality.py --length 8192 --steps 25 --seeds 0 --output finetune-quality-8k \
        --ways full "full, shifted sparse attention"
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from longrope.demo import model_folder
from longrope.demo.corpus import standard_library
from longrope.finetune.settings import AdapterSettings, FinetuneSettings, HeldOutSettings, MemorySettings
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.rope.methods import yarn
from longrope.rope.policy import load_factors

SHORT = 256
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "control: full, segments of 256": {"seq_length": SHORT},
    "LoRA, norms, embeddings": {"method": "lora"},
    "plain LoRA": {"method": "lora", "adapter": AdapterSettings(train_embeddings_and_norms=False)},
    "full, shifted sparse attention": {"attention": "shifted-sparse"},
}


def write_texts(folder: Path, judged: bool) -> tuple[Path, Path]:
    """The modules to train on and those to judge by: half of the held-out ones, or for choosing settings the others."""
    paths = folder / "train.jsonl", folder / ("judged.jsonl" if judged else "chosen-by.jsonl")
    modules = list(standard_library())
    held_out = [module for module in modules if module.held_out]
    texts = [module for module in modules if not module.held_out], held_out[1::2] if judged else held_out[::2]
    for path, chosen in zip(paths, texts, strict=True):
        path.write_text("".join(json.dumps({"text": module.text}) + "\n" for module in chosen))
    return paths


def settings_for(way: str, seed: int, args: argparse.Namespace, texts: tuple[Path, Path]) -> FinetuneSettings:
    """The settings of one run; the learning rate of adapters is their own."""
    base = FinetuneSettings(
        model=str(model_folder()),
        factors=str(args.output / "factors.json"),
        data=str(texts[0]),
        output=str(args.output / f"{way}-{args.lr}-{args.lora_lr}-{seed}".replace(" ", "-").replace(",", "")),
        seq_length=args.length,
        steps=args.steps,
        learning_rate=args.lora_lr if "LoRA" in way else args.lr,
        warmup=10,
        global_batch=args.batch,
        zero=0,
        precision="fp32",
        memory=MemorySettings(checkpoint_activations=False),
        held_out=HeldOutSettings(source=str(texts[1]), lengths=(SHORT, args.length), samples=args.samples),
        save_steps=0,
        log_steps=10,
        seed=seed,
    )
    changed = replace(base, **WAYS[way])
    segments = args.length // changed.seq_length
    return replace(changed, global_batch=args.batch * segments, micro_batch=segments)


def run(settings: FinetuneSettings) -> dict[str, Any]:
    """Train in a process of its own."""
    started = time.perf_counter()
    command = [
        sys.executable,
        "-c",
        "import sys; from longrope.finetune.run import finetune; "
        "from longrope.finetune.settings import FinetuneSettings; "
        "finetune(FinetuneSettings.from_json(sys.stdin.read()), resume=True)",
    ]
    subprocess.run(command, input=settings.to_json(), text=True, check=True, stdout=subprocess.DEVNULL)
    held_out = json.loads((Path(settings.output) / "held_out.json").read_text())
    return {"held_out": held_out, "seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", type=Path, help="for this length; YaRN's where none are given")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1, help="segments of the length a step")
    parser.add_argument("--lr", type=float, default=6e-5)
    parser.add_argument("--lora-lr", type=float, default=2.5e-4)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--choose", action="store_true", help="measure on the modules for choosing settings")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    texts = write_texts(args.output, judged=not args.choose)
    present = read_rope(ModelSource(str(model_folder())).load_config()).present
    factors = load_factors(args.factors) if args.factors else yarn(present, args.length)
    factors.save(args.output / "factors.json")
    journal = args.output / "results.jsonl"
    known = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    names = ("length", "steps", "batch", "lr", "lora_lr", "samples", "choose")
    setting = {name: getattr(args, name) for name in names}
    for seed in args.seeds:
        for way in args.ways:
            key = {"way": way, "seed": seed, **setting}
            if any(key.items() <= entry.items() for entry in known):
                continue
            entry = {
                **key,
                "machine": platform.processor() or platform.machine(),
                **run(settings_for(way, seed, args, texts)),
            }
            known.append(entry)
            with journal.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
            print(json.dumps(entry), flush=True)
    print_table([entry for entry in known if setting.items() <= entry.items()], args.length)


def print_table(entries: list[dict[str, Any]], long: int) -> None:
    """Mean and standard deviation over the seeds; gains in percent of perplexity."""
    print(f"\n| | perplexity at {long} | gain | perplexity at {SHORT} | change | seconds |\n|---|---|---|---|---|---|")
    for way in dict.fromkeys(entry["way"] for entry in entries):
        own = [entry for entry in entries if entry["way"] == way]
        cells = []
        for length in (long, SHORT):
            after = [entry["held_out"]["after"][str(length)] for entry in own]
            change = [
                100 * (a / entry["held_out"]["before"][str(length)] - 1) for a, entry in zip(after, own, strict=True)
            ]
            sign = -1 if length == long else 1
            cells += [_spread(after, ".3f"), _spread([sign * each for each in change], "+.2f") + " %"]
        print(f"| {way} | {' | '.join(cells)} | {mean(entry['seconds'] for entry in own):.0f} |")
    before = entries[0]["held_out"]["before"]
    print(f"\nbefore: {before[str(long)]:.3f} at {long}, {before[str(SHORT)]:.3f} at {SHORT}")


def _spread(values: list[float], form: str) -> str:
    deviation = stdev(values) if len(values) > 1 else math.nan
    return f"{mean(values):{form}} ± {deviation:.2f}"


if __name__ == "__main__":
    main()
