"""What fine-tuning the embedded model under searched factors gains, and what it costs at the old length.

Every way to train sees the same number of tokens of Python's standard library, three seeds each, and is judged on
modules that neither training nor the search nor the choice of settings has seen: the first tokens of every one that is
long enough, as one text of the length trained for, and the same tokens in windows of 256, each under the factors that
the model has for its length.

    longrope demo --texts texts
    longrope search demo --target-length 2k --data texts/held-out.jsonl --held-out 20 \
        --max-evaluations 128 --output factors-2k
    python benchmarks/finetune_quality.py --factors factors-2k/factors.json --output finetune-quality
    python benchmarks/finetune_quality.py --length 8192 --steps 25 --seeds 0 --output finetune-quality-8k \
        --ways full "full, shifted sparse attention"
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from longrope.data.documents import read_documents
from longrope.data.samples import Sample
from longrope.demo import model_folder
from longrope.demo.corpus import standard_library
from longrope.finetune.merge import merge
from longrope.finetune.settings import AdapterSettings, FinetuneSettings, MemorySettings
from longrope.model.load import ModelSource
from longrope.model.rope_config import read_rope
from longrope.model.score import score_blocks
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.rope.policy import RopePolicy, load_factors

SHORT = 256
BEFORE = "before"
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
        save_steps=0,
        log_steps=10,
        seed=seed,
    )
    changed = replace(base, **WAYS[way])
    segments = args.length // changed.seq_length
    return replace(changed, global_batch=args.batch * segments, micro_batch=segments)


def train(settings: FinetuneSettings) -> Path:
    """The folder of the trained model; a process of its own trains it, or nobody where that was done already."""
    command = [
        sys.executable,
        "-c",
        "import sys; from longrope.finetune.run import finetune; "
        "from longrope.finetune.settings import FinetuneSettings; "
        "finetune(FinetuneSettings.from_json(sys.stdin.read()), resume=True)",
    ]
    subprocess.run(command, input=settings.to_json(), text=True, check=True, stdout=subprocess.DEVNULL)
    output = Path(settings.output)
    model = output / "model"
    if settings.method != "full" and not model.exists():
        merge(output / "adapter", model)
    return model


def judge(source: ModelSource, policy: RopePolicy, tokens: list[Any]) -> dict[str, list[float]]:
    """Mean nats of each text's tokens, by the length of the windows that it is read in."""
    model = source.load_model()

    def nats(text: Any, window: int) -> float:
        starts = range(0, len(text) - window + 1, window)
        factors = policy.factors_for(window)
        scored = [score_blocks(model, text[start : start + window], [factors]).sum() for start in starts]
        return float(sum(scored)) / (len(starts) * (window - 1))

    return {str(window): [nats(text, window) for text in tokens] for window in (SHORT, len(tokens[0]))}


def read_tokens(path: Path, length: int, factors: RopeFactors) -> list[Any]:
    """The first tokens of every text that is long enough and was not searched on."""
    tokenizer = ModelSource(str(model_folder())).load_tokenizer()
    encoded = (tokenizer(each.text, verbose=False)["input_ids"] for each in read_documents(str(path)))
    long_enough = [np.asarray(each[:length], dtype=np.int32) for each in encoded if len(each) >= length]
    drawn = factors.provenance.get("data", {}).get("drawn", {}).get("search", ())
    searched = {sample["digest"] for sample in drawn}
    target = factors.target_length
    return [tokens for tokens in long_enough if Sample("", tokens[:target]).digest not in searched]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", type=Path, help="for this length; YaRN's where none are given")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1, help="segments of the length a step")
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--lora-lr", type=float, default=2.5e-4)
    parser.add_argument("--choose", action="store_true", help="measure on the modules for choosing settings")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    texts = write_texts(args.output, judged=not args.choose)
    plain = ModelSource(str(model_folder()))
    rope = read_rope(plain.load_config(), plain.folder())
    factors = load_factors(args.factors) if args.factors else yarn(rope.present, args.length)
    assert isinstance(factors, RopeFactors), "give the factors of a search, not a schedule"
    factors.save(args.output / "factors.json")
    journal = args.output / "results.jsonl"
    known = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    names = ("length", "steps", "batch", "lr", "lora_lr", "choose")
    setting = {name: getattr(args, name) for name in names}
    tokens = read_tokens(texts[1], args.length, factors)

    def measure(way: str, seed: int) -> dict[str, Any]:
        if way == BEFORE:
            return judge(plain, rope.extended_by(factors), tokens)
        source = ModelSource(str(train(settings_for(way, seed, args, texts))))
        return judge(source, read_rope(source.load_config(), source.folder()).policy, tokens)

    for way, seed in [(BEFORE, 0), *((way, seed) for seed in args.seeds for way in args.ways)]:
        key = {"way": way, "seed": seed, **setting}
        if any(key.items() <= entry.items() for entry in known):
            continue
        known.append({**key, "nats": measure(way, seed)})
        with journal.open("a") as stream:
            stream.write(json.dumps(known[-1]) + "\n")
        print(
            f"{way}, seed {seed}: {', '.join(f'{perplexity(known[-1], at):.3f}' for at in (args.length, SHORT))}",
            flush=True,
        )
    print_table([entry for entry in known if setting.items() <= entry.items()], args.length)


def perplexity(entry: dict[str, Any], window: int) -> float:
    """Of all texts together; they have the same number of tokens."""
    return math.exp(mean(entry["nats"][str(window)]))


def print_table(entries: list[dict[str, Any]], long: int) -> None:
    """Mean and standard deviation over the seeds, and the paired standard error over texts of a run's change."""
    before = next(entry for entry in entries if entry["way"] == BEFORE)
    print(f"\n{len(before['nats'][str(long)])} texts of {long} tokens\n")
    print(f"| | perplexity at {long} | change | perplexity at {SHORT} | change |\n|---|---|---|---|---|")
    print(f"| {BEFORE} | {perplexity(before, long):.3f} | | {perplexity(before, SHORT):.3f} | |")
    for way in [each for each in WAYS if any(entry["way"] == each for entry in entries)]:
        cells = []
        for window in (long, SHORT):
            own = [entry for entry in entries if entry["way"] == way]
            changes = [100 * (perplexity(entry, window) / perplexity(before, window) - 1) for entry in own]
            pairs = zip(own[0]["nats"][str(window)], before["nats"][str(window)], strict=True)
            differences = [after - earlier for after, earlier in pairs]
            error = 100 * stdev(differences) / math.sqrt(len(differences))
            values = _spread([perplexity(entry, window) for entry in own], ".3f")
            cells += [values, f"{_spread(changes, '+.2f')} % ({error:.2f})"]
        print(f"| {way} | {' | '.join(cells)} |")


def _spread(values: list[float], form: str) -> str:
    return f"{mean(values):{form}}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
