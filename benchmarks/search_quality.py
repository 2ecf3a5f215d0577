"""Held-out perplexity of what each search algorithm finds, by evaluations spent, on the embedded model.

    python benchmarks/search_quality.py run --output sq --algorithms paper --workers 1
    python benchmarks/search_quality.py table --output sq

Every search is a folder with a journal: a run that was stopped goes on where it was, and several runs with other
algorithms may work beside each other in the same output folder. Search samples are drawn, and algorithms seeded, by the
seed; the held-out documents are the same for all, and no choice is ever made by them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from longrope.data.documents import read_documents
from longrope.data.samples import SampleSet, draw_samples
from longrope.demo import model_folder
from longrope.demo.corpus import write_texts
from longrope.model.score import perplexity
from longrope.runs.model import LoadedModel, open_model
from longrope.runs.progress import Progress
from longrope.search.evaluation import BlockScore, Task
from longrope.search.paper import PaperSearch
from longrope.search.run import open_samples, open_scorer
from longrope.search.search import search_problem
from longrope.search.settings import AlgorithmSettings, DataSettings, SearchSettings
from longrope.workers.settings import ExecutionSettings

CHECKPOINTS = (50, 100, 150, 200, 400, 800, 1344)
WINDOW = 256
HELD_OUT = 20
CELL = "cell.json"


def run_cell(model: LoadedModel, texts: Any, args: argparse.Namespace, ratio: int, seed: int, algorithm: str) -> None:
    folder = Path(args.output) / f"{ratio}x" / f"seed-{seed}" / algorithm
    limit = args.paper_evaluations if algorithm == "paper" and ratio == 8 else args.evaluations
    marks = [mark for mark in CHECKPOINTS if mark <= limit]
    known = json.loads((folder / CELL).read_text()) if (folder / CELL).exists() else {}
    if all(str(mark) in known.get("held_out", {}) for mark in marks):
        return
    target = ratio * WINDOW
    execution = ExecutionSettings(workers=args.workers, device="cpu", dtype="bfloat16")
    settings = SearchSettings(
        model=str(model_folder()),
        output=str(folder),
        target_length=target,
        data=DataSettings(source=str(texts.search), samples=5, held_out=0),
        execution=execution,
        algorithm=AlgorithmSettings(algorithm=algorithm, max_evaluations=limit),
        seed=seed,
    )
    drawn = open_samples(settings.data, model.tokenizer, target, seed, Progress())
    judged = draw_samples(read_documents(str(texts.evaluation)), model.tokenizer, target, HELD_OUT, 0, 0)
    samples = SampleSet(drawn.search, judged.search)
    problem = search_problem(model, settings, samples=samples)
    decisive = {"ratio": ratio, "seed": seed, "algorithm": algorithm}
    with open_scorer(folder, decisive, model, samples, (target,), execution, True, Progress()) as scorer:
        search = PaperSearch(problem.space, problem.seeds, settings.algorithm.genetic(target), seed)
        while candidates := search.ask():
            search.tell(scorer.perplexities(candidates, samples.search))
        known = {"ratio": ratio, "seed": seed, "algorithm": algorithm, "search": {}, "held_out": {}, "documents": {}}
        for mark in marks:
            scored = min(search.history[:mark], key=lambda each: each.score)
            tasks = [Task(scored.candidate, sample.digest) for sample in samples.held_out]
            results = scorer.score(tasks)
            losses = [results[task] for task in tasks]
            assert all(isinstance(loss, BlockScore) for loss in losses)
            known["search"][str(mark)] = scored.score
            known["held_out"][str(mark)] = perplexity(sum(x.total for x in losses), sum(x.tokens for x in losses))
            known["documents"][str(mark)] = [x.total / x.tokens for x in losses]
    (folder / CELL).write_text(json.dumps(known, indent=1))
    print(f"{ratio}x seed {seed} {algorithm}:", {k: round(v, 3) for k, v in known["held_out"].items()}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--algorithms", nargs="+", default=["paper"])
    parser.add_argument("--ratios", nargs="+", type=int, default=[8, 4, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--paper-evaluations", type=int, default=1344)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    texts = write_texts(Path(args.output) / "texts")
    model = open_model(str(model_folder()), ExecutionSettings(workers=1, device="cpu", dtype="bfloat16"), None)
    for ratio in args.ratios:
        for seed in args.seeds:
            for algorithm in args.algorithms:
                run_cell(model, texts, args, ratio, seed, algorithm)


if __name__ == "__main__":
    main()
