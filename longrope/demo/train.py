"""Train the embedded model: ``python -m longrope.demo.train --output DIR`` (CPU or GPU, resumable).

A small Llama with a 256-token window learns the training share of the standard library's source, mixed with
about a tenth of retrieval texts. Step ``k`` draws its batch from the seed and ``k`` alone, so a run that was
interrupted goes on from its last checkpoint with the batches it would have seen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longrope.demo.corpus import python_version, standard_library
from longrope.demo.retrieval import make_example

WINDOW = 256
VOCABULARY = 2048
RETRIEVAL_SHARE = 0.1


@dataclass(frozen=True)
class TrainSettings:
    """What a training run is; written beside the model, and compared before a run is resumed.

    Attributes:
        steps: where the cosine of the learning rate ends, and the training with it.
        earlier_plans: (until, steps) of plans that were shortened: before step ``until`` the cosine was that of a
            run of ``steps``.
    """

    steps: int = 2300
    earlier_plans: tuple[tuple[int, int], ...] = ()
    batch: int = 16
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.1
    seed: int = 0
    window: int = WINDOW
    vocabulary: int = VOCABULARY
    retrieval_share: float = RETRIEVAL_SHARE


def train_tokenizer(texts: Sequence[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that adds BOS and splits numbers into single digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def model_config(vocabulary: int = VOCABULARY, window: int = WINDOW) -> LlamaConfig:
    """The embedded model's shape: 5.3 million parameters, 6 layers, 4 heads of 64."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=window,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _batch(
    stream: np.ndarray[Any, Any], tokenizer: Any, settings: TrainSettings, step: int
) -> torch.Tensor:  # (batch, window)
    rng = random.Random(f"{settings.seed}/{step}")
    rows = []
    for _ in range(settings.batch):
        start = rng.randrange(len(stream) - settings.window)
        row = stream[start : start + settings.window].tolist()
        if rng.random() < settings.retrieval_share:
            filler = row if rng.random() < 0.5 else None
            keyed = rng.choice((0, 0, 0, 1, 2))
            length = rng.randrange(settings.window // 2, settings.window + 1)
            example = make_example(tokenizer, length, rng, filler=filler, keyed=keyed)
            row = (example.prompt + example.answer + [tokenizer.eos_token_id] + row)[: settings.window]
        rows.append(row)
    return torch.tensor(rows)


def _learning_rate(settings: TrainSettings, step: int) -> float:
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    horizon = next((steps for until, steps in settings.earlier_plans if step < until), settings.steps)
    done = (step - settings.warmup) / max(horizon - settings.warmup, 1)
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def _held_out_loss(model: LlamaForCausalLM, rows: torch.Tensor, device: str) -> float:
    model.eval()
    losses = [model(input_ids=part, labels=part).loss.item() for part in rows.to(device).split(16)]
    model.train()
    return float(sum(losses) / len(losses))


def _save(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int) -> None:
    temporary = folder / "checkpoint.tmp"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)
    os.replace(temporary, folder / "checkpoint.pt")


def train(
    output: Path, settings: TrainSettings, device: str = "cpu", report_every: int = 100, compiled: bool = False
) -> None:
    """Train the model into ``output``: Hugging Face files, ``training.json`` and ``loss.jsonl``."""
    output.mkdir(parents=True, exist_ok=True)
    record = json.loads(json.dumps({**asdict(settings), "python": python_version()}))
    settings_file = output / "training.json"
    if settings_file.exists() and json.loads(settings_file.read_text()) != record:
        raise SystemExit(f"error: {output} holds a run with other settings; choose another folder or remove it")
    modules = list(standard_library())
    training = [module.text for module in modules if not module.held_out]
    if (output / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(output)
    else:
        tokenizer = train_tokenizer(training, settings.vocabulary)
        tokenizer.save_pretrained(output)
    settings_file.write_text(json.dumps(record, indent=2) + "\n")

    order = random.Random(settings.seed)
    order.shuffle(training)
    ids: list[int] = []
    for text in training:
        ids += [*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id]
    stream = np.array(ids, dtype=np.uint16)
    held_out = [tokenizer(m.text, verbose=False)["input_ids"][: settings.window] for m in modules if m.held_out]
    held_out_rows = torch.tensor([row for row in held_out if len(row) == settings.window])

    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(model_config(settings.vocabulary, settings.window))
    model.to(torch.device(device))  # type: ignore[arg-type]
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
    )
    first = 0
    if (output / "checkpoint.pt").exists():
        state = torch.load(output / "checkpoint.pt", map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        kept = [line for line in (output / "loss.jsonl").read_text().splitlines() if json.loads(line)["step"] <= first]
        (output / "loss.jsonl").write_text("".join(line + "\n" for line in kept))
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(stream)} training tokens, from step {first}")

    forward = torch.compile(model) if compiled else model
    model.train()
    started, running = time.monotonic(), 0.0
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(settings, step)
        batch = _batch(stream, tokenizer, settings, step).to(device)
        with torch.autocast(device_type=device.split(":")[0], dtype=torch.bfloat16, enabled=device != "cpu"):
            loss = forward(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running += loss.item()
        done = step + 1
        if done % report_every == 0 or done == settings.steps:
            count = (done - 1) % report_every + 1
            line = {
                "step": done,
                "tokens": done * settings.batch * settings.window,
                "loss": round(running / count, 4),
                "held_out_loss": round(_held_out_loss(model, held_out_rows, device), 4),
                "seconds": round(time.monotonic() - started, 1),
            }
            running = 0.0
            with (output / "loss.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            _save(output, model, optimizer, done)
    model.bfloat16().save_pretrained(output)
    print(f"saved to {output}")


def main() -> None:
    """The command line of the trainer."""
    defaults = TrainSettings()
    parser = argparse.ArgumentParser(description="Train longrope's embedded demo model.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--earlier-plan",
        nargs=2,
        type=int,
        action="append",
        default=[],
        metavar=("UNTIL", "STEPS"),
        help="before step UNTIL the learning rate was that of a run of STEPS (a run that was shortened)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model (needs a C++ compiler on CPU)")
    args = parser.parse_args()
    settings = TrainSettings(
        steps=args.steps,
        earlier_plans=tuple((until, steps) for until, steps in args.earlier_plan),
        batch=args.batch,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    train(args.output, settings, args.device, compiled=args.compile)


if __name__ == "__main__":
    main()
