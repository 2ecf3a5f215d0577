"""Evaluate from Python: the same call as `longrope evaluate perplexity`, for people who want to change something.

    python evaluation/run_evaluation.py meta-llama/Llama-2-7b-hf --factors runs/128k/factors.json --data books/ \
        --lengths 4k,32k,128k --output runs/perplexity

Edit the settings below; what differs from run to run is an option. Every field is described in
longrope/evaluation/settings.py. Another suite is another `open_*` function of longrope/evaluation/, and a suite of your
own is a subclass of longrope.evaluation.suite.Suite.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

from longrope.cli.outcome import print_evaluation
from longrope.cli.progress import ConsoleProgress
from longrope.evaluation.open_perplexity import open_perplexity
from longrope.evaluation.run import evaluate
from longrope.evaluation.settings import EvaluationSettings, PerplexitySettings
from longrope.exceptions import InvalidInputError, LongRopeError
from longrope.lengths import parse_lengths
from longrope.workers.settings import ExecutionSettings


def main() -> None:
    """Read the options, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder or a hub id")
    parser.add_argument("--factors", help="factors or a schedule (JSON)")
    parser.add_argument("--data", required=True, help="long documents: a file, a folder or a hub dataset")
    parser.add_argument("--lengths", required=True, help="4k,32k,128k")
    parser.add_argument("--output", required=True, help="folder that receives the results")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    args = parser.parse_args()
    try:
        settings = EvaluationSettings(
            model=args.model,
            output=args.output,
            lengths=parse_lengths(args.lengths),
            factors=args.factors,
            methods=("none", "pi", "ntk", "yarn", *(["longrope"] if args.factors else [])),
            execution=ExecutionSettings(executor="local"),
            resume=args.resume,
        )
        documents = PerplexitySettings(source=args.data, samples=10, protocol="sliding", stride=256)
        with ConsoleProgress() as progress:
            report = evaluate(settings, partial(open_perplexity, documents, settings.lengths, settings.seed), progress)
    except LongRopeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InvalidInputError) else 1)
    print_evaluation(report)


if __name__ == "__main__":
    main()
