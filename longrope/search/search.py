"""``longrope search``: a model and long documents go in, a factor JSON comes out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from longrope.exceptions import SettingsError
from longrope.lengths import format_length
from longrope.model.rope_config import check_attention_span
from longrope.rope.attention_factor import resolve
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.rope.policy import FixedFactors
from longrope.runs.model import LoadedModel, numeric_settings, open_model
from longrope.runs.progress import Progress
from longrope.runs.provenance import versions
from longrope.search.algorithms import Sizes, make_algorithm
from longrope.search.baselines import Baseline, both_attention_factors, published_baselines
from longrope.search.candidate import Candidate
from longrope.search.comparison import (
    MethodResult,
    PairedDifference,
    paired_difference,
    report_lengths,
    table,
)
from longrope.search.levels import FIRST_RAMPS, Ramp
from longrope.search.racing import RULE
from longrope.search.run import (
    FACTORS_FILE,
    TABLE_FILE,
    announce,
    describe_samples,
    open_samples,
    open_scorer,
    refuse_other_run,
    sample_digests,
)
from longrope.search.settings import PERPLEXITY, SEARCHED_ATTENTION, AlgorithmSettings, SearchSettings
from longrope.search.solve import Plan, Problem, Solution, solve
from longrope.search.space import SearchSpace
from longrope.workers.settings import ExecutionSettings

BEYOND = 1.25
"""Times the target: a length for whose YaRN there is a seed as well, where the model is extended already."""

ATTENTION_SPAN = 1.25
"""How many times the usual attention factor one that is searched may be, and what part of it."""


@dataclass(frozen=True)
class SearchReport:
    """The outcome of a search, as the command line shows it.

    Attributes:
        factors: the best factors, with their provenance; also in ``folder / "factors.json"``.
        table: one row a method.
        solution: what the rows were made from.
        yarn: the better of the YaRN rows on held-out documents, and the paired difference of the searched factors
            from it at the target length; None without held-out documents.
    """

    factors: RopeFactors
    folder: Path
    table: pd.DataFrame
    solution: Solution
    yarn: tuple[MethodResult, PairedDifference] | None


def search(settings: SearchSettings, progress: Progress | None = None) -> SearchReport:
    """Search factors for ``settings.target_length`` and write them with all that led to them.

    Raises:
        InvalidInputError: for input that cannot be used; nothing is written then.
        RunFailedError: if the workers or the model fail; what was evaluated stays in the journal.
    """
    progress = progress or Progress()
    folder = Path(settings.output)
    refuse_other_run(folder, settings.resume)
    model = open_model(settings.model, settings.execution, settings.revision)
    rope, target = model.rope, settings.target_length
    check_target(model, target)
    samples = open_samples(settings.data, model.tokenizer, target, settings.seed, progress)
    problem = search_problem(model, settings, samples=samples)
    sizes = settings.algorithm.sizes(target)
    decisive = {
        "model": model.fingerprint,
        "target_length": target,
        "seed": settings.seed,
        **algorithm_settings(settings.algorithm, sizes, problem.ramp),
        **space_settings(problem.space),
        "samples": sample_digests(samples),
        # Named only where it is not the usual one: journals from before there was another are gone on with.
        **({} if settings.data.objective == PERPLEXITY else {"objective": settings.data.objective}),
        **({"beyond": BEYOND} if rope.is_scaled else {}),
        **numeric_settings(model, settings.execution),
    }
    together = sizes.round_size
    with open_scorer(
        folder, decisive, model, samples, problem.lengths, settings.execution, together, settings.resume, progress
    ) as scorer:
        announce(model, settings.data, samples, target, progress)
        algorithm = make_algorithm(
            settings.algorithm.algorithm, problem.space, problem.seeds, problem.ramp, sizes, settings.seed
        )
        solution = solve(
            problem, algorithm, scorer, plan_of(settings.algorithm, sizes, model, settings.execution), progress
        )
    provenance = {
        "method": f"longrope search, algorithm {settings.algorithm.algorithm}",
        "seed": settings.seed,
        "model": model.describe(),
        "data": {**asdict(settings.data), "drawn": describe_samples(samples)},
        "settings": {
            **{name: value for name, value in decisive.items() if name not in ("model", "samples", "seed")},
            "attention_factor_rule": settings.algorithm.attention_factor,
            "batch": scorer.batch,
        },
        "present": Candidate.from_factors(rope.present).to_dict() | {"window": rope.window},
        "results": results_record(solution, problem),
        "versions": versions(),
    }
    factors = solution.best.to_factors(rope.policy.reference, target).replace(provenance=provenance)
    factors.save(folder / FACTORS_FILE)
    frame = table(solution.results, problem.lengths)
    frame.to_csv(folder / TABLE_FILE, index=False)
    return SearchReport(factors, folder, frame, solution, against_yarn(solution, target))


def check_target(model: LoadedModel, target: int) -> None:
    """Refuse a target that the model has reached already, or that its attention cannot see.

    Raises:
        SettingsError: if the present window is as long.
        UnsupportedModelError: if a layer's sliding window is shorter.
    """
    window = model.rope.window
    if target <= window:
        raise SettingsError(
            f"target length {format_length(target)} is not longer than the present window of {format_length(window)}; "
            "give a longer one, or use `longrope readjust` for short windows"
        )
    check_attention_span(model.config, target)


def search_problem(model: LoadedModel, settings: SearchSettings, **fields: Any) -> Problem:
    """The search space and seeds for this model and target."""
    rope, target, chosen = model.rope, settings.target_length, settings.algorithm
    ratio = target / rope.original_length
    rule = chosen.attention_factor
    searched = rule == SEARCHED_ATTENTION
    if rule in ("auto", SEARCHED_ATTENTION):
        rule = "present" if rope.is_scaled else "su"
    attention_factor = resolve(rule, ratio, rope.original_length, rope.present.attention_factor)
    # A model may be scaled by another factor than its lengths say; its seeds must have room all the same.
    reached = max(rope.present.lambdas) * target / rope.window
    lambda_max = chosen.lambda_max if chosen.lambda_max is not None else chosen.lambda_max_ratio * max(ratio, reached)
    space = SearchSpace(
        pairs=rope.rotary_dim // 2,
        lambda_min=min(1.0, *rope.present.lambdas),
        lambda_max=lambda_max,
        n_hat_choices=chosen.n_hat_choices,
        attention_factor=attention_factor,
        attention_span=ATTENTION_SPAN if searched else 1.0,
    )
    published = published_baselines(rope, target)
    # Composed step by step, YaRN interpolates pairs of middling speed less than in one step from the original length,
    # which is what a model that was trained to look ahead knows. Without steps the two are the same.
    # That for more than the target keeps slow pairs, at positions without training, at angles that training had.
    original = rope.policy.factors_for(rope.original_length)
    reaches = (1.0, BEYOND) if rope.is_scaled else (1.0,)
    at_once = [Baseline("yarn", FixedFactors(yarn(original, round(target * each)))) for each in reaches]
    seeds = [
        baseline.with_attention_factor(attention_factor).at(target)
        for baseline in (*published, *at_once)
        if baseline.name in ("pi", "ntk", "yarn")
    ]
    return Problem(
        rope=rope,
        length=target,
        space=space,
        seeds=tuple(seeds),
        ramp=Ramp(rope.present, rope.window, target / rope.window),
        methods=both_attention_factors(published, attention_factor),
        lengths=report_lengths(rope.original_length, target) if settings.data.scores_all else (target,),
        **fields,
    )


def algorithm_settings(chosen: AlgorithmSettings, sizes: Sizes, ramp: Ramp | None) -> dict[str, Any]:
    """What decides an algorithm's choices, in JSON's types; what is off is not named."""
    extra = {
        "first_ramps": FIRST_RAMPS if ramp and ramp.unscaled and chosen.algorithm == "genetic" else 0,
        "racing": RULE if chosen.races else 0,
        "patience": chosen.patience,
        "max_gpu_hours": chosen.max_gpu_hours,
    }
    return {"algorithm": chosen.algorithm, **asdict(sizes), **{name: value for name, value in extra.items() if value}}


def plan_of(chosen: AlgorithmSettings, sizes: Sizes, model: LoadedModel, execution: ExecutionSettings) -> Plan:
    """How a search with these settings is run."""
    budget = chosen.budget(execution.gpus(model.source.on_gpu))
    return Plan(sizes.most, sizes.round_size, chosen.races, chosen.watched_every, budget)


def space_settings(space: SearchSpace) -> dict[str, Any]:
    """The search space in JSON's types."""
    settings = {**asdict(space), "n_hat_choices": list(space.n_hat_choices)}
    if not space.searches_attention:
        del settings["attention_span"]
    return settings


def results_record(solution: Solution, problem: Problem) -> dict[str, Any]:
    """What the factor file says of its own making; no times in it, so that equal runs give equal files."""
    rows = [
        {
            "method": result.name,
            "attention_factor": result.attention_factor,
            "search_perplexity": _finite(result.search),
            "held_out_perplexity": {str(length): _finite(result.held_out(length)) for length in problem.lengths},
        }
        for result in solution.results
    ]
    flat = solution.best_without_n_hat
    return {
        "evaluations": solution.evaluations,
        **solution.course.record(),
        "convergence": [list(step) for step in solution.convergence],
        "methods": rows,
        "best_without_n_hat": None if flat is None else flat.to_dict(),
    }


def against_yarn(solution: Solution, target: int) -> tuple[MethodResult, PairedDifference] | None:
    """The better YaRN, and how far the searched factors are from it on held-out documents."""
    yarn = solution.result("yarn")
    difference = paired_difference(solution.result(), yarn, target)
    return None if difference is None else (yarn, difference)


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
