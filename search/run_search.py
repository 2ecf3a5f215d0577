"""Search rescale factors from Python: the same calls as `longrope search`, for people who want to change something.

    python search/run_search.py meta-llama/Llama-2-7b-hf --target-length 128k --data books/ --output runs/llama2-128k

Edit the settings below; what differs from run to run is an option. Every field is described in
longrope/search/settings.py.
"""

from __future__ import annotations

import argparse
import sys

from longrope.cli.outcome import print_search, write_search_plots
from longrope.cli.progress import ConsoleProgress
from longrope.exceptions import InvalidInputError, LongRopeError
from longrope.lengths import parse_length
from longrope.search.search import search
from longrope.search.settings import AlgorithmSettings, DataSettings, SearchSettings
from longrope.workers.settings import ExecutionSettings

# --- Settings to edit. What is not named, or None, is the default; comments say what that is. ---

ALGORITHM = {
    "algorithm": "genetic",  # from coarse to fine, as cma is; or paper, the genetic search of LongRoPE
    # paper has sizes of its own besides: mutations, crossovers, parents, mutation_probability and iterations. With
    # another algorithm they are an error.
    "population": None,  # candidates a round: 8; of paper, in the first round: 64, or 32 above 512k
    "max_evaluations": None,  # 200; of paper as many as its rounds come to
    "patience": None,  # rounds without a clearly better candidate after which the search ends; no such end
    "racing": None,  # drop candidates that have hardly a chance after some of the samples: True, but for paper
    "n_hat": None,  # (0,), which every engine can serve; of paper the 14 choices from 0 to 256
    "lambda_max": None,  # 4 times target over original length; of paper 1.25 times
    "attention_factor": "auto",  # su, or present for a scaled model; su, yarn, present, none, a number, or search
}
DATA = {
    "field": "text",  # of JSONL, parquet and Hugging Face datasets
    "split": "train",  # of Hugging Face datasets
    "samples": None,  # documents to search on: 5; 3 above 512k
    "held_out": 10,  # other documents, for the final comparison alone
    "concatenate": False,  # join documents where long ones are rare
}
EXECUTION = {
    "dtype": "auto",  # bf16 on a GPU, fp32 on a CPU
    "device": "auto",
    "attention": "sdpa",  # flash_attention_2 where flash-attn is installed
    "batch": None,  # candidates scored in one forward pass: measured on a GPU, 1 on a CPU
    "threads_per_worker": 1,  # part of the run's identity: a resumed run must have the same
}


class Watch(ConsoleProgress):
    """Shows the progress on the console; the place to send it elsewhere too, for example to a tracker."""

    def describe(self, status: str) -> None:
        """Take what is said after every round, such as ``round 3, best perplexity 7.1234``."""
        super().describe(status)


def settings_from(arguments: argparse.Namespace) -> SearchSettings:
    """The search that the options and the settings above describe."""
    return SearchSettings(
        model=arguments.model,
        target_length=parse_length(arguments.target_length),
        output=arguments.output,
        data=DataSettings(source=arguments.data, **DATA),
        execution=ExecutionSettings(
            workers=arguments.workers,
            gpus_per_worker=arguments.gpus_per_worker,
            executor=arguments.executor,
            ray_address=arguments.ray_address,
            **EXECUTION,
        ),
        algorithm=AlgorithmSettings(**ALGORITHM | {"max_evaluations": arguments.max_evaluations}),
        seed=arguments.seed,
        resume=arguments.resume,
    )


def main() -> int:
    """Search, write the plots, print the table; exit codes are those of `longrope search`."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="a model folder or a hub id")
    parser.add_argument("--target-length", required=True, metavar="LENGTH", help="tokens: 4096, 128k, 2m")
    parser.add_argument("--data", required=True, metavar="PATH", help="long documents: a file, folder or dataset id")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder that receives the results")
    parser.add_argument("--seed", type=int, default=0, help="decides the samples and every random choice")
    most = ALGORITHM["max_evaluations"]
    parser.add_argument("--max-evaluations", type=int, default=most, help="candidates to score at most")
    parser.add_argument("--workers", type=int, help="evaluators; one a GPU if not given")
    parser.add_argument("--gpus-per-worker", type=float, help="GPUs of each evaluator: 1, several, or a fraction")
    parser.add_argument("--executor", choices=("local", "ray"), default="local")
    parser.add_argument("--ray-address", help="an existing cluster: auto, or host:port")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    arguments = parser.parse_args()
    try:
        with Watch() as progress:
            report = search(settings_from(arguments), progress)
        print_search(report, write_search_plots(report))
    except LongRopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError) else 1
    return 0


# The guard is needed: local evaluators are new processes that import this file.
if __name__ == "__main__":
    sys.exit(main())
