"""How far several processes are from one: ten steps of the embedded model, by every launcher and stage of ZeRO.

longrope demo --texts texts
longrope search demo --target-length 2k --data texts/held-out.jsonl --held-out 20 \
    --max-evaluations 128 --output factors-2k
python benchmarks/finetune_processes.py --factors factors-2k/factors.json --data texts/training.jsonl \
    --output finetune-processes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from longrope.demo import model_folder
from longrope.finetune.settings import FinetuneSettings

WAYS = {
    "1 process, no DeepSpeed": (0, 1, 1),
    "2 processes, data-parallel": (0, 1, 2),
    "2 processes, ZeRO 1": (1, 1, 2),
    "2 processes, ZeRO 2": (2, 1, 2),
    "2 processes, ZeRO 3": (3, 1, 2),
    "2 processes, ZeRO 2, sp 2": (2, 2, 2),
    "2 processes, ZeRO 3, sp 2": (3, 2, 2),
    "4 processes, ZeRO 3, sp 2": (3, 2, 4),
}
_COMMAND = """
import sys
from longrope.finetune.launch import LaunchSettings
from longrope.finetune.run import finetune
from longrope.finetune.settings import FinetuneSettings
launching = LaunchSettings(launcher=sys.argv[1], gpus=int(sys.argv[2]))
finetune(FinetuneSettings.from_json(sys.stdin.read()), launching, resume=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", required=True, help="of 8 times the window")
    parser.add_argument("--data", required=True, help="text to train on")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--launchers", nargs="+", default=["torchrun", "ray"])
    parser.add_argument("--seq-length", type=int, default=512)
    args = parser.parse_args()
    base = FinetuneSettings(
        model=str(model_folder()),
        factors=args.factors,
        data=args.data,
        output="",
        seq_length=args.seq_length,
        steps=10,
        warmup=2,
        learning_rate=2e-4,
        global_batch=4,
        precision="fp32",
        save_steps=10,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    journal = args.output / "results.jsonl"
    known = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    for name, (zero, sp, processes) in WAYS.items():
        for launcher in args.launchers if processes > 1 else ["none"]:
            if any((entry["name"], entry["launcher"]) == (name, launcher) for entry in known):
                continue
            output = args.output / f"{launcher}-{processes}-{zero}-{sp}"
            settings = replace(base, zero=zero, sp=sp, output=str(output))
            known.append({"name": name, "launcher": launcher, **run(settings, launcher, processes)})
            with journal.open("a") as stream:
                stream.write(json.dumps(known[-1]) + "\n")
            print(json.dumps(known[-1]), flush=True)
    print("\n| | launcher | losses, largest relative difference | gradient norms |\n|---|---|---|---|")
    for entry in known:
        apart = [
            max(abs(ours / theirs - 1) for ours, theirs in zip(entry[quantity], known[0][quantity], strict=True))
            for quantity in ("loss", "grad_norm")
        ]
        print(f"| {entry['name']} | {entry['launcher']} | {apart[0]:.1e} | {apart[1]:.1e} |")


def run(settings: FinetuneSettings, launcher: str, processes: int) -> dict[str, Any]:
    """Losses and gradient norms of all steps."""
    command = [sys.executable, "-c", _COMMAND, launcher, str(processes)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    subprocess.run(command, input=settings.to_json(), text=True, check=True, env=environment, capture_output=True)
    state = json.loads((Path(settings.output) / "checkpoints/checkpoint-10/trainer_state.json").read_text())
    return {key: [step[key] for step in state["log_history"] if key in step] for key in ("loss", "grad_norm")}


if __name__ == "__main__":
    main()
