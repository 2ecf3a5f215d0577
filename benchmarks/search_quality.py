"""Held-out perplexity of what each search algorithm finds, by evaluations spent, on the embedded model.

    python benchmarks/search_quality.py run --output benchmarks/results/search_quality --work WORK
    python benchmarks/search_quality.py table --output benchmarks/results/search_quality
    python benchmarks/search_quality.py plot --output benchmarks/results/search_quality --picture quality.png

Every search has a journal in WORK, so one that was stopped goes on where it was; a finished one is a JSON file in the
output folder and is not run again. One whose candidates were made or dropped by another rule counts as missing; to run
it again, take a new WORK. Several runs with other searches may share both folders. Search samples are drawn, and
algorithms seeded, by the seed; the 20 held-out documents are the same for all, and nothing is chosen by them.
Weights are bfloat16, which on CPUs with AMX takes 0.4 times as long as float32.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from longrope.data.documents import read_documents
from longrope.data.samples import SampleSet, draw_samples
from longrope.demo import model_folder
from longrope.demo.corpus import Texts, python_version, write_texts
from longrope.files import write_text_atomically
from longrope.model.score import perplexity
from longrope.runs.model import LoadedModel, open_model
from longrope.runs.progress import Progress
from longrope.search.algorithms import make_algorithm
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.search.levels import FIRST_RAMPS
from longrope.search.racing import RULE, Race
from longrope.search.run import open_samples, open_scorer
from longrope.search.scorer import Scorer
from longrope.search.search import algorithm_settings, search_problem, space_settings
from longrope.search.settings import AlgorithmSettings, DataSettings, SearchSettings
from longrope.search.space import PAPER_N_HAT
from longrope.workers.settings import ExecutionSettings

MARKS = (50, 100, 150, 200, 400, 800, 1344)
WINDOW = 256
HELD_OUT = 20
SAMPLES = 5
SEARCHES: dict[str, dict[str, Any]] = {
    "paper": {"algorithm": "paper"},
    "genetic": {"algorithm": "genetic"},
    "cma": {"algorithm": "cma"},
    # Without racing, and what the n_hat and attention genes bring.
    "genetic, no racing": {"algorithm": "genetic", "racing": False},
    "genetic, n_hat": {"algorithm": "genetic", "n_hat": PAPER_N_HAT},
    "genetic, attention": {"algorithm": "genetic", "attention_factor": "search"},
}


def rules(name: str) -> dict[str, int]:
    """By which candidates of a search are made and dropped; 0 where there is no such rule."""
    chosen = AlgorithmSettings(**SEARCHES[name])
    return {"first_ramps": FIRST_RAMPS if chosen.algorithm == "genetic" else 0, "racing": RULE if chosen.races else 0}


def by_present_rules(result: dict[str, Any]) -> bool:
    """Whether a result was made by the present rules."""
    return all(result.get(rule, 0) == present for rule, present in rules(result["search"]).items())


def search_once(model: LoadedModel, texts: Texts, args: argparse.Namespace, ratio: int, seed: int, name: str) -> None:
    """Run one search to its budget, and score what was best at every mark on the held-out documents."""
    found = Path(args.output) / f"{ratio}x-seed-{seed}-{name.replace(', ', '-').replace(' ', '-')}.json"
    limit = args.paper_evaluations if name == "paper" and ratio == 8 else args.evaluations
    chosen = AlgorithmSettings(**{"max_evaluations": limit, "watch": 0, **SEARCHES[name]})
    if found.exists():
        known = json.loads(found.read_text())
        if known["limit"] >= limit and by_present_rules(known):
            return
    target, execution = ratio * WINDOW, ExecutionSettings(workers=args.workers, device="cpu", dtype="bfloat16")
    settings = SearchSettings(
        model=str(model_folder()),
        output=str(Path(args.work) / found.stem),
        target_length=target,
        data=DataSettings(source=str(texts.search), samples=SAMPLES, held_out=0),
        execution=execution,
        algorithm=chosen,
        seed=seed,
    )
    drawn = open_samples(settings.data, model.tokenizer, target, seed, Progress())
    judged = draw_samples(read_documents(str(texts.evaluation)), model.tokenizer, target, HELD_OUT, 0, 0)
    samples = SampleSet(drawn.search, judged.search)
    problem = search_problem(model, settings, samples=samples)
    sizes = settings.algorithm.sizes(target)
    decisive = {
        "ratio": ratio,
        "seed": seed,
        **algorithm_settings(settings.algorithm, sizes, problem.ramp),
        **space_settings(problem.space),
    }
    with open_scorer(
        Path(settings.output), decisive, model, samples, (target,), execution, sizes.round_size, True, Progress()
    ) as scorer:
        algorithm = make_algorithm(chosen.algorithm, problem.space, problem.seeds, problem.ramp, sizes, seed)
        race, tokens = Race(samples.search), []
        while candidates := algorithm.ask():
            outcome = race.run(scorer, candidates, algorithm.rival if chosen.races else None)
            algorithm.tell(outcome.scores, outcome.dropped)
            tokens.append((len(algorithm.history), race.scored))
        marks = {}
        for mark in (mark for mark in MARKS if mark <= limit):
            best = min((each for each in algorithm.history[:mark] if not each.dropped), key=lambda each: each.score)
            marks[str(mark)] = {
                "search": best.score,
                **held_out(scorer, best.candidate, samples),
                "scored_tokens": next((scored for told, scored in tokens if told >= mark), race.scored),
                "n_hat": best.candidate.n_hat,
                "attention_factor": best.candidate.attention_factor,
            }
        yarn = held_out(scorer, problem.seeds[2], samples)
    record = {
        "ratio": ratio,
        "seed": seed,
        "search": name,
        "limit": limit,
        **rules(name),
        "tokens_without_racing": race.scored + race.saved,
        "scored_tokens": race.scored,
        "yarn": yarn,
        "marks": marks,
        "lambdas": algorithm.best[0].lambdas if algorithm.best else None,
        "python": python_version(),
    }
    write_text_atomically(found, json.dumps(record) + "\n")
    print(f"{found.stem}:", {mark: round(each["held_out"], 3) for mark, each in marks.items()}, flush=True)


def held_out(scorer: Scorer, candidate: Candidate, samples: SampleSet) -> dict[str, Any]:
    """Perplexity over the held-out documents, and the loss per token of each."""
    tasks = [Task(candidate, sample.digest) for sample in samples.held_out]
    results = scorer.score(tasks)
    scores = [result for task in tasks if isinstance(result := results[task], BlockScore)]
    assert len(scores) == len(tasks)
    total = perplexity(math.fsum(score.total for score in scores), sum(score.tokens for score in scores))
    return {"held_out": total, "documents": [round(score.total / score.tokens, 7) for score in scores]}


def read_results(folder: str) -> list[dict[str, Any]]:
    """All that were made by the present rules; the others are named."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*x-seed-*.json"))}
    if others := [name for name, each in results.items() if not by_present_rules(each)]:
        print("left out, made by other rules:", ", ".join(others))
    return [each for name, each in results.items() if name not in others]


def table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Mean over the seeds of held-out perplexity, and their standard deviation, by ratio, search and evaluations."""
    rows = [
        {"ratio": each["ratio"], "search": each["search"], "evaluations": int(mark), "held-out": at["held_out"]}
        for each in results
        for mark, at in each["marks"].items()
    ]
    grouped = pd.DataFrame(rows).groupby(["ratio", "search", "evaluations"])["held-out"]
    text = grouped.agg(
        lambda values: f"{values.mean():.3f} ± {values.std():.3f}" if len(values) > 1 else f"{values.mean():.3f}"
    )
    return text.unstack("evaluations").fillna("")


def paired(results: list[dict[str, Any]], ratio: int, first: tuple[str, int], second: tuple[str, int]) -> str | None:
    """The first's held-out perplexity over the second's, in percent (100 times the log), with the standard error.

    Other documents would have given another ratio, and so would other seeds, which draw the search's samples and its
    steps: both are in it, as random effects that are crossed; with one seed alone only documents are.
    """
    differences = []
    for seed in sorted({each["seed"] for each in results}):
        documents = [
            each["marks"][str(mark)]["documents"]
            for name, mark in (first, second)
            for each in results
            if (each["ratio"], each["seed"], each["search"]) == (ratio, seed, name) and str(mark) in each["marks"]
        ]
        if len(documents) == 2:
            differences.append([a - b for a, b in zip(*documents, strict=True)])
    if not differences:
        return None
    each = 100 * pd.DataFrame(differences)
    mean = each.to_numpy().mean()
    seeds, documents = each.mean(axis=1), each.mean()
    variance = documents.var() / len(documents)
    if len(seeds) > 1:
        rest = (each.sub(seeds, axis=0) - documents + mean).to_numpy()
        rest_variance = (rest**2).sum() / ((len(seeds) - 1) * (len(documents) - 1)) / each.size
        # Neither effect is less than none.
        variance = max(variance, rest_variance) + max(seeds.var() / len(seeds), rest_variance) - rest_variance
    told = f"{mean:+.2f}% ± {math.sqrt(variance):.2f} (by seed {', '.join(f'{seed:+.2f}' for seed in seeds)})"
    return f"{ratio}x, {first[0]} at {first[1]} against {second[0]} at {second[1]}: {told}"


def show(results: list[dict[str, Any]]) -> None:
    print(table(results).to_string())
    for ratio, ours in product((4, 8, 16), ("genetic", "cma")):
        for mark, theirs in ((150, 400), (150, 1344), (400, 400), (400, 1344)):
            if told := paired(results, ratio, (ours, mark), ("paper", theirs)):
                print(told)
        others = (f"{ours}, no racing", f"{ours}, n_hat", f"{ours}, attention", "cma", "genetic")
        for other, mark in product(others, (150, 400)):
            if other != ours and (told := paired(results, ratio, (ours, mark), (other, mark))):
                print(told)
    for each in results:
        if each["scored_tokens"] < each["tokens_without_racing"]:
            saved = 100 * (1 - each["scored_tokens"] / each["tokens_without_racing"])
            last = list(each["marks"].values())[-1]
            ends = f"ends with n_hat {last['n_hat']}, attention factor {last['attention_factor']:.4f}"
            print(f"{each['ratio']}x seed {each['seed']} {each['search']}: racing saved {saved:.0f}%, {ends}")


def plot(results: list[dict[str, Any]], picture: str) -> None:
    """Held-out perplexity against evaluations, a panel a ratio; bars from the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ratios = sorted({each["ratio"] for each in results})
    figure, panels = pyplot.subplots(1, len(ratios), figsize=(5 * len(ratios), 4), squeeze=False)
    for panel, ratio in zip(panels[0], ratios, strict=True):
        for number, name in enumerate(("paper", "genetic", "cma")):
            runs = [each for each in results if (each["ratio"], each["search"]) == (ratio, name)]
            marks = sorted({int(mark) for each in runs for mark in each["marks"]})
            values = [
                [each["marks"][str(mark)]["held_out"] for each in runs if str(mark) in each["marks"]] for mark in marks
            ]
            if marks:
                means = [sum(group) / len(group) for group in values]
                spread = [
                    [mean - min(group) for mean, group in zip(means, values, strict=True)],
                    [max(group) - mean for mean, group in zip(means, values, strict=True)],
                ]
                panel.errorbar(marks, means, yerr=spread, marker="o", capsize=3, label=name, color=f"C{number}")
        panel.set(title=f"{WINDOW} to {ratio * WINDOW} tokens", xlabel="evaluations", xscale="log")
        shown = sorted({int(mark) for each in results if each["ratio"] == ratio for mark in each["marks"]})
        panel.set_xticks(shown, [str(mark) for mark in shown])
        panel.minorticks_off()
        panel.set_ylabel("held-out perplexity")
        panel.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "plot"))
    parser.add_argument("--output", required=True, help="folder of the results")
    parser.add_argument("--work", help="folder of the journals")
    parser.add_argument("--searches", nargs="+", default=["paper", "genetic", "cma"], choices=SEARCHES)
    parser.add_argument("--ratios", nargs="+", type=int, default=[8, 4, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--paper-evaluations", type=int, default=1344, help="of paper at 8x")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--picture", default="search_quality.png")
    args = parser.parse_args()
    if args.what == "table":
        return show(read_results(args.output))
    if args.what == "plot":
        return plot(read_results(args.output), args.picture)
    if not args.work:
        parser.error("run needs --work, a folder for the journals")
    Path(args.output).mkdir(parents=True, exist_ok=True)
    texts = write_texts(Path(args.work) / "texts")
    model = open_model(str(model_folder()), ExecutionSettings(workers=1, device="cpu", dtype="bfloat16"), None)
    for ratio, name, seed in product(args.ratios, args.searches, args.seeds):
        search_once(model, texts, args, ratio, seed, name)
    return None


if __name__ == "__main__":
    main()
