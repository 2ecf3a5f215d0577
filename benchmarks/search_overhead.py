"""Share of a search's wall time that is spent outside the model, with one worker, on the embedded model.

    python benchmarks/search_overhead.py --evaluations 100

Wall time runs from the start of the worker (its imports and the loading of the model included) to the last result;
model time is what the worker measured around each forward pass and its loss.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

from longrope.demo import model_folder
from longrope.demo.corpus import write_held_out
from longrope.search.search import search
from longrope.search.settings import AlgorithmSettings, DataSettings, SearchSettings
from longrope.workers.settings import ExecutionSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=100, help="candidates to score")
    parser.add_argument("--target-length", type=int, default=2048)
    parser.add_argument("--executor", default="local", choices=("local", "ray"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = SearchSettings(
            model=str(model_folder()),
            output=str(Path(folder) / "run"),
            target_length=args.target_length,
            data=DataSettings(source=str(write_held_out(Path(folder) / "held-out.jsonl")), held_out=10),
            execution=ExecutionSettings(workers=1, executor=args.executor, device="cpu"),
            algorithm=AlgorithmSettings(algorithm="paper", max_evaluations=args.evaluations),
        )
        search(settings)
        run = json.loads((Path(folder) / "run" / "run.json").read_text())
    outside = run["wall_seconds"] - run["model_seconds"]
    print(f"{run['evaluations']} evaluations of {args.target_length} tokens, executor {args.executor}")
    print(f"wall {run['wall_seconds']:.1f} s, model {run['model_seconds']:.1f} s")
    print(f"outside the model: {outside:.1f} s, {100 * outside / run['wall_seconds']:.1f}% of the wall time")
    print(f"{platform.machine()}, {run['machine']['cpus']} CPUs, torch {run['versions']['torch']}")


if __name__ == "__main__":
    main()
