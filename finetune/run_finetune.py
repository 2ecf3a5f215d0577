"""Fine-tune from Python: the same call as `longrope finetune`, for people who want to change something.

    python finetune/run_finetune.py meta-llama/Llama-2-7b-hf --factors runs/128k/factors.json --data mixture.yaml \
        --seq-length 128k --output runs/ft128k

torchrun and the deepspeed launcher start it as well:

    torchrun --nproc-per-node 8 finetune/run_finetune.py MODEL ...
    deepspeed finetune/run_finetune.py MODEL ...

Edit the settings below; what differs from run to run is an option. Every field is described in
longrope/finetune/settings.py.
"""

from __future__ import annotations

import argparse
import sys

from longrope.cli.outcome import print_finetune
from longrope.exceptions import InvalidInputError, LongRopeError
from longrope.finetune.launch import LaunchSettings
from longrope.finetune.run import finetune
from longrope.finetune.settings import FinetuneSettings, HeldOutSettings, MemorySettings
from longrope.lengths import parse_length


def main() -> None:
    """Read the options, train, print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder or a hub id")
    parser.add_argument("--factors", required=True, help="factors or a schedule (JSON)")
    parser.add_argument("--data", required=True, help="a mixture file, documents, or a hub dataset")
    parser.add_argument("--seq-length", required=True, help="tokens of a segment: 2048, 128k")
    parser.add_argument("--output", required=True, help="folder that receives the results")
    parser.add_argument("--held-out", help="text whose perplexity is measured before and after")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher gives it
    args = parser.parse_args()
    try:
        settings = FinetuneSettings(
            model=args.model,
            factors=args.factors,
            data=args.data,
            output=args.output,
            seq_length=parse_length(args.seq_length),
            steps=args.steps,
            # The paper's, for LLaMA2-7B (arXiv 2402.13753, section 4.1).
            learning_rate=2e-5,
            schedule="linear",
            global_batch=32,
            memory=MemorySettings(offload_activations=False),
            held_out=HeldOutSettings(source=args.held_out),
            save_steps=50,
        )
        report = finetune(settings, LaunchSettings(), resume=args.resume)
    except LongRopeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InvalidInputError) else 1)
    if report.speaks:
        print_finetune(report)


if __name__ == "__main__":
    main()
