"""Solve one problem: run the algorithm over a model's factors for one length, then compare on held-out documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from longrope.data.samples import SampleSet
from longrope.exceptions import RunFailedError
from longrope.model.rope_config import ModelRope
from longrope.rope.policy import FixedFactors
from longrope.runs.progress import Progress
from longrope.search.algorithm import SearchAlgorithm
from longrope.search.baselines import Baseline
from longrope.search.candidate import Candidate
from longrope.search.comparison import MethodResult, compare
from longrope.search.evaluation import BlockScore, Task
from longrope.search.levels import Ramp
from longrope.search.overfitting import Look, Watch
from longrope.search.racing import Race
from longrope.search.scorer import Scorer
from longrope.search.space import SearchSpace
from longrope.search.stopping import Budget, Stopping
from longrope.workers.pool import Failure

SEARCHED = "longrope"
PROBES = 3
"""Candidates that must fail one after the other before a search gives up at its start."""
SEARCHED_WITHOUT_N_HAT = "longrope, n_hat = 0"


@dataclass(frozen=True)
class Problem:
    """What is searched, and what the result is compared with.

    Attributes:
        rope: the model's RoPE.
        length: tokens of every sample.
        space: where candidates come from.
        seeds: candidates to start from, quantised by the algorithm.
        ramp: what a coarse search moves first; None where nothing is known to grow with the length.
        methods: what to compare with, scored as published.
        samples: documents that score candidates, and held-out ones for the comparison alone.
        lengths: at which to compare, up to ``length``.
    """

    rope: ModelRope
    length: int
    space: SearchSpace
    seeds: tuple[Candidate, ...]
    methods: tuple[Baseline, ...]
    samples: SampleSet
    lengths: tuple[int, ...]
    ramp: Ramp | None = None


@dataclass(frozen=True)
class Plan:
    """How a search is run.

    Attributes:
        most: candidates the algorithm will ask for at most, for the progress display.
        round_size: candidates of a usual round; 0 where nobody says.
        racing: whether candidates may be dropped before they are scored on all samples.
        watched_every: rounds between looks at held-out documents; 0 for none.
        budget: what else ends it.
    """

    most: int
    round_size: int = 0
    racing: bool = False
    watched_every: int = 0
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class Course:
    """How a search went.

    Attributes:
        stopped: why it ended early; None if it did not.
        scored_tokens: tokens scored for candidates.
        saved_tokens: those that racing saved.
        looks: at held-out documents on the way.
    """

    stopped: str | None = None
    scored_tokens: int = 0
    saved_tokens: int = 0
    looks: tuple[Look, ...] = ()

    @property
    def saved_share(self) -> float:
        """Of all tokens that would have been scored without racing."""
        return self.saved_tokens / max(self.scored_tokens + self.saved_tokens, 1)

    def record(self) -> dict[str, Any]:
        """For the factor file, in JSON's types; nothing where nothing happened."""
        told: dict[str, Any] = {}
        if self.saved_tokens:
            told |= {"scored_tokens": self.scored_tokens, "saved_tokens": self.saved_tokens}
        if self.stopped:
            told["stopped"] = self.stopped
        if self.looks:
            told["looks"] = [asdict(look) for look in self.looks]
        return told


@dataclass(frozen=True)
class Solution:
    """What came out.

    Attributes:
        best: the best candidate on the search samples.
        best_without_n_hat: the best whose n_hat is 0, which engines without n_hat can serve.
        results: the methods of the problem, then the searched factors.
        scores: perplexity on the search samples of every candidate, in the order asked; inf where it failed.
        convergence: best perplexity on the search samples after each round, with the evaluations until then.
    """

    best: Candidate
    best_without_n_hat: Candidate | None
    results: tuple[MethodResult, ...]
    scores: tuple[float, ...]
    convergence: tuple[tuple[int, float], ...]
    course: Course = field(default_factory=Course)

    @property
    def evaluations(self) -> int:
        """Candidates scored by the algorithm."""
        return len(self.scores)

    def result(self, name: str = SEARCHED) -> MethodResult:
        """The result of a method by name; of several rows the one that is best on held-out documents."""
        rows = [result for result in self.results if result.name == name]
        target = max((max(result.losses, default=0) for result in rows), default=0)
        return min(rows, key=lambda result: _or_inf(result.held_out(target)))


def solve(
    problem: Problem,
    algorithm: SearchAlgorithm,
    scorer: Scorer,
    plan: Plan,
    progress: Progress,
) -> Solution:
    """Run ``algorithm`` to its end on the search samples, then compare once on the held-out ones.

    Raises:
        RunFailedError: if no candidate could be scored at all.
    """
    samples = problem.samples.search
    race, watch = Race(samples), Watch(problem.samples.held_out)
    stopping = Stopping(plan.budget, samples)
    stopped: str | None = None
    convergence = []
    candidates = algorithm.ask()
    if candidates:
        progress.note(predicted_cost(problem, scorer, candidates[:PROBES], plan.most))
    if plan.racing and 0 < plan.round_size < scorer.workers:
        progress.note(
            f"{scorer.workers} evaluators race over {plan.round_size} candidates a round, one sample after the other, "
            f"and {scorer.workers - plan.round_size} of them wait; --no-racing would have work for "
            f"{plan.round_size * len(samples)}, a larger --population for more"
        )
    progress.begin("search", plan.most * len(samples))
    while candidates:
        outcome = race.run(scorer, candidates, algorithm.rival if plan.racing else None)
        algorithm.tell(outcome.scores, outcome.dropped)
        if algorithm.best is None:
            reasons = sorted({failure.reason for failure in scorer.failures()})
            raise RunFailedError(f"no candidate could be scored: {'; '.join(reasons[:3])}")
        best, score = algorithm.best
        convergence.append((len(algorithm.history), score))
        progress.describe(f"round {algorithm.round}, best perplexity {score:.4f}")
        stopped = stopping.reason(scorer, best, race.seconds)
        if stopped:
            scorer.record({"kind": "stop", "round": algorithm.round, "reason": stopped})
            progress.note(f"the search ends after {len(algorithm.history)} candidates: {stopped}")
            break
        if plan.watched_every and algorithm.round % plan.watched_every == 0:
            told = watch.look(scorer, len(algorithm.history), best, score)
            if told:
                progress.note(told)
        candidates = algorithm.ask()
    progress.end()
    if algorithm.best is None:
        raise RunFailedError("the search ended before a candidate was scored; give more evaluations")

    best = algorithm.best[0]
    flat = algorithm.best_with(lambda candidate: candidate.n_hat == 0)
    best_without_n_hat = flat[0] if flat is not None else None
    methods = [*problem.methods, as_baseline(SEARCHED, best, problem)]
    if best_without_n_hat is not None and best_without_n_hat != best:
        methods.append(as_baseline(SEARCHED_WITHOUT_N_HAT, best_without_n_hat, problem))
    progress.begin("comparison on held-out documents", None)
    results = compare(scorer, methods, samples, problem.samples.held_out, problem.lengths)
    progress.end()
    scores = tuple(scored.score for scored in algorithm.history)
    course = Course(stopped, race.scored, race.saved, tuple(watch.looks))
    if race.saved:
        progress.note(f"racing saved {100 * course.saved_share:.0f}% of the tokens that candidates would have cost")
    return Solution(best, best_without_n_hat, tuple(results), scores, tuple(convergence), course)


def predicted_cost(problem: Problem, scorer: Scorer, candidates: Sequence[Candidate], planned: int) -> str:
    """What the run will take, from the first of ``candidates`` that can be scored; the search needs it anyway.

    Raises:
        RunFailedError: if none can: a model that does not fit would fail in every other evaluation, too.
    """
    result: BlockScore | Failure = Failure("there are no candidates")
    for candidate in candidates:
        task = Task(candidate, problem.samples.search[0].digest)
        result = scorer.score([task])[task]
        if isinstance(result, BlockScore):
            break
    searching = planned * len(problem.samples.search)
    comparing = len(problem.methods) * (len(problem.samples.search) + len(problem.samples.held_out))
    text = f"{searching} evaluations to search and about {comparing} to compare, on {scorer.workers} worker(s)"
    if isinstance(result, Failure):
        raise RunFailedError(f"the first {len(candidates)} evaluations failed, so the search ends: {result.reason}")
    # The first was alone in its batch, so its time is that of all the candidates that fit in.
    seconds = (searching + comparing) * result.seconds / scorer.batch / scorer.workers
    return f"{text}, {result.seconds:.2f} s for the first: about {describe_duration(seconds)}"


def describe_duration(seconds: float) -> str:
    """A duration in the unit people would use."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def as_baseline(name: str, candidate: Candidate, problem: Problem) -> Baseline:
    """A candidate as a method that has the same factors at every length."""
    factors = candidate.to_factors(problem.rope.policy.reference, problem.length)
    return Baseline(name, FixedFactors(factors))


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else value
