"""Memory and time of one training step (forward, backward, AdamW) of the embedded model against the segment length.

python benchmarks/finetune_memory.py --journal DIR/memory.jsonl --plot docs/images/finetune-memory.png

Each measurement runs in a process of its own and is one line of the journal; started again, the program goes on with
those that are missing. Peak memory is what a step takes above the model with its AdamW state: resident memory on a CPU
(Linux), allocated memory on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longrope.runs.peak_memory import PeakMemory

ATTENTIONS = ("full", "shifted-sparse")
FEATURES = {
    "nothing": (),
    "tiled loss": ("tile_loss",),
    "tiled MLP": ("tile_mlp",),
    "checkpointing": ("checkpoint",),
    "checkpointing, tiled MLP and loss": ("checkpoint", "tile_mlp", "tile_loss"),
    "the same, offloaded": ("checkpoint", "offload", "tile_mlp", "tile_loss"),
}
LENGTHS = (4096, 8192, 16384, 32768)
TIMED = (2048, 8192)
TILE = 1024  # positions; the default tile of the loss, 128 MiB of logits, is 16k with a vocabulary of 2048
MIB = 2**20


@dataclass(frozen=True)
class Measurement:
    kind: str  # memory: one step; time: the median of three
    device: str
    attention: str
    features: str
    length: int
    threads: int


def measurements(device: str, threads: int) -> list[Measurement]:
    """All of them, the times last. Offloading is for GPUs: activations of a CPU are in host memory anyway."""
    names = [name for name, parts in FEATURES.items() if device == "cuda" or "offload" not in parts]
    memory = [
        Measurement("memory", device, attention, name, length, threads)
        for length in LENGTHS
        for attention in reversed(ATTENTIONS)
        for name in names
    ]
    times = [
        Measurement("time", device, attention, name, length, 1)
        for length in TIMED
        for attention in ATTENTIONS
        for name in ("nothing", names[-1])
    ]
    return memory + times


def measure(wanted: Measurement) -> dict[str, Any]:
    """Run the steps in this process."""
    import torch
    from transformers.utils import logging

    from longrope.demo import model_folder
    from longrope.finetune.activation_checkpointing import checkpoint_activations
    from longrope.finetune.shifted_sparse import use_shifted_sparse
    from longrope.finetune.tiled_loss import tile_loss
    from longrope.finetune.tiled_mlp import tile_mlp
    from longrope.model.attach import attach
    from longrope.model.load import ModelSource
    from longrope.model.rope_config import read_rope
    from longrope.rope.methods import yarn

    logging.disable_progress_bar()
    torch.set_num_threads(wanted.threads)
    cuda = wanted.device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    model = ModelSource(str(model_folder())).load_pretrained(dtype=dtype, attn_implementation="sdpa")
    model.to(wanted.device).train()
    attach(model, yarn(read_rope(model.config).present, wanted.length)).pin(wanted.length)
    features = FEATURES[wanted.features]
    if wanted.attention == "shifted-sparse":
        use_shifted_sparse(model, wanted.length)
    if "checkpoint" in features:
        checkpoint_activations(model, offload="offload" in features)
    if "tile_mlp" in features:
        tile_mlp(model, TILE)
    if "tile_loss" in features:
        tile_loss(model, TILE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.randint(
        2, model.config.vocab_size, (1, wanted.length + 1), generator=torch.Generator().manual_seed(0)
    )

    def step(length: int) -> float:
        ids, labels = tokens[:, :length].to(wanted.device), tokens[:, 1 : length + 1].to(wanted.device)
        positions = torch.arange(length, device=wanted.device)[None]
        started = time.perf_counter()
        # transformers wants to see labels, though it uses the shifted ones
        loss = model(input_ids=ids, position_ids=positions, labels=labels, shift_labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return time.perf_counter() - started

    step(64)  # AdamW's state, and what the first call allocates for good, are part of the model
    if cuda:
        torch.cuda.synchronize()
        loaded = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    memory = PeakMemory(on_gpu=False)
    seconds = sorted(step(wanted.length) for _ in range(3 if wanted.kind == "time" else 1))
    assert memory.above is not None
    host = memory.above / MIB
    peak = (torch.cuda.max_memory_allocated() - loaded) / MIB if cuda else host
    return {
        **asdict(wanted),
        "peak_mib": round(peak, 1),
        "host_mib": round(host, 1),
        "seconds": seconds[len(seconds) // 2],
    }


def in_a_fresh_process(wanted: Measurement) -> dict[str, Any]:
    environment = dict(os.environ)
    if wanted.kind == "memory":
        # glibc keeps freed blocks for later; blocks of 64 KiB and more go straight back, so that what is resident is
        # what is in use. It costs time, so times are taken without.
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, __file__, "--one", json.dumps(asdict(wanted))]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def table(lines: list[dict[str, Any]], kind: str, figure: str, digits: int) -> str:
    """A markdown table of one figure: attention and features down, lengths across."""
    lengths = sorted({line["length"] for line in lines if line["kind"] == kind})
    found = {
        (line["attention"], line["features"], line["length"]): line[figure] for line in lines if line["kind"] == kind
    }
    rows = [f"| attention | with | {' | '.join(f'{length // 1024}k' for length in lengths)} |"]
    rows.append("|---" * (2 + len(lengths)) + "|")
    for attention in ATTENTIONS:
        for name in FEATURES:
            figures = [found.get((attention, name, length)) for length in lengths]
            if any(each is not None for each in figures):
                cells = " | ".join("" if each is None else f"{each:.{digits}f}" for each in figures)
                rows.append(f"| {attention} | {name} | {cells} |")
    return "\n".join(rows)


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Peak memory against length, one line for each combination, to ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
    colours = dict(zip(FEATURES, ("#222222", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"), strict=True))
    for attention, style in zip(ATTENTIONS, ("-", "--"), strict=True):
        for name in FEATURES:
            points = sorted(
                (line["length"], line["peak_mib"])
                for line in lines
                if (line["kind"], line["attention"], line["features"]) == ("memory", attention, name)
            )
            if points:
                label = name if attention == "full" else None
                axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, color=colours[name], label=label)
    axes.plot([], [], "--", color="#777777", label="dashed: shifted sparse attention")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(LENGTHS, [f"{length // 1024}k" for length in LENGTHS])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("tokens of the segment")
    axes.set_ylabel("MiB above the model and AdamW")
    axes.set_title("Peak memory of a training step, embedded model", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journal", type=Path, default=Path("finetune-memory.jsonl"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the memory measurements; times are taken with one")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(Measurement(**json.loads(args.one)))))
        return
    lines = []
    if args.journal.exists():
        lines = [json.loads(line) for line in args.journal.read_text().splitlines()]
    known = {tuple(line[name] for name in Measurement.__dataclass_fields__) for line in lines}
    for wanted in measurements(args.device, args.threads):
        if tuple(asdict(wanted).values()) in known:
            continue
        line = in_a_fresh_process(wanted)
        with args.journal.open("a") as journal:
            journal.write(json.dumps(line) + "\n")
        lines.append(line)
        print(json.dumps(line), flush=True)
    lines = [line for line in lines if line["device"] == args.device]
    print("\nPeak memory of a step above the model and AdamW, MiB\n")
    print(table(lines, "memory", "peak_mib", 0))
    print("\nSeconds of a step, one thread, median of 3\n")
    print(table(lines, "time", "seconds", 2))
    if args.plot:
        plot(lines, args.plot)


if __name__ == "__main__":
    main()
