"""Compare methods on the same held-out documents, at several lengths, with standard errors of paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from longrope.data.samples import Sample
from longrope.lengths import format_length
from longrope.model.score import BLOCK, perplexity
from longrope.search.baselines import Baseline
from longrope.search.evaluation import BlockScore, Task
from longrope.search.scorer import Scorer

DocumentLosses = Mapping[int, tuple[tuple[float, int], ...]]
"""Of one method: length -> (NLL sum, predicted tokens) of each document."""


@dataclass(frozen=True)
class MethodResult:
    """One method on the search samples and on the held-out documents.

    Attributes:
        name: the method.
        attention_factor: what it was scored with at the target length.
        search: perplexity on the search samples at the target length.
        losses: held-out losses by length; a length whose evaluation failed is missing.
    """

    name: str
    attention_factor: float
    search: float
    losses: DocumentLosses

    def held_out(self, length: int) -> float:
        """Held-out perplexity at ``length``; nan where it could not be measured."""
        documents = self.losses.get(length, ())
        if not documents:
            return math.nan
        return perplexity(math.fsum(nll for nll, _ in documents), sum(tokens for _, tokens in documents))


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference of two methods' loss per token over the same documents, in nats, and its standard error."""

    mean: float
    standard_error: float
    documents: int

    @property
    def standard_errors(self) -> float:
        """How many standard errors the difference is away from none; negative when the first method is better."""
        if self.standard_error > 0:
            return self.mean / self.standard_error
        return math.copysign(math.inf, self.mean) if self.mean else 0.0


def paired_difference(first: MethodResult, second: MethodResult, length: int) -> PairedDifference | None:
    """``first`` minus ``second`` at ``length``; None without at least two documents scored by both."""
    pairs = list(zip(first.losses.get(length, ()), second.losses.get(length, ()), strict=False))
    differences = [a / n - b / m for (a, n), (b, m) in pairs]
    count = len(differences)
    if count < 2:
        return None
    mean = math.fsum(differences) / count
    variance = math.fsum((value - mean) ** 2 for value in differences) / (count - 1)
    return PairedDifference(mean, math.sqrt(variance / count), count)


def report_lengths(original_length: int, target_length: int) -> tuple[int, ...]:
    """Lengths worth a column: the original length and its doublings up to the target, and the target itself.

    Lengths below the target come from the blocks of one pass over the target length, so they are whole blocks.
    """
    lengths = {target_length}
    length = original_length
    while length < target_length:
        if length % BLOCK == 0:
            lengths.add(length)
        length *= 2
    return tuple(sorted(lengths))


def held_out_samples(held_out: Sequence[Sample], lengths: Sequence[int]) -> dict[tuple[str, int], Sample]:
    """Every held-out sample cut to every length, by (digest, length)."""
    return {
        (sample.digest, length): sample if length == len(sample.tokens) else sample.prefix(length)
        for sample in held_out
        for length in lengths
    }


def passes(method: Baseline, lengths: Sequence[int]) -> dict[int, int]:
    """For each length the one that a document is scored at: the longest with the same factors."""
    by_candidate: dict[object, list[int]] = {}
    for length in lengths:
        by_candidate.setdefault(method.at(length), []).append(length)
    return {length: max(group) for group in by_candidate.values() for length in group}


def compare(
    scorer: Scorer,
    methods: Sequence[Baseline],
    search: Sequence[Sample],
    held_out: Sequence[Sample],
    lengths: Sequence[int],
) -> list[MethodResult]:
    """Score every method on the search samples at the longest length, and on the held-out documents at all lengths.

    A method whose factors are the same at several lengths needs one pass over the longest of them: attention is
    causal, so the first blocks of a long text are scored as they are in a shorter one.
    """
    target = max(lengths)
    cut = held_out_samples(held_out, lengths)
    plans = [passes(method, lengths) for method in methods]
    tasks = [Task(method.at(target), sample.digest) for method in methods for sample in search]
    for method, plan in zip(methods, plans, strict=True):
        tasks += [Task(method.at(scored), cut[s.digest, scored].digest) for scored in plan.values() for s in held_out]
    results = scorer.score(tasks)

    compared = []
    for method, plan in zip(methods, plans, strict=True):
        losses = {}
        for length, scored in plan.items():
            scores = [results[Task(method.at(scored), cut[s.digest, scored].digest)] for s in held_out]
            prefixes = [_prefix(score, length, scored) for score in scores if isinstance(score, BlockScore)]
            if prefixes and len(prefixes) == len(held_out):
                losses[length] = tuple(prefixes)
        ppl = scorer.perplexities([method.at(target)], search)[method.at(target)]
        compared.append(MethodResult(method.name, method.at(target).attention_factor, ppl, losses))
    return compared


def table(results: Sequence[MethodResult], lengths: Sequence[int]) -> pd.DataFrame:
    """One row a method: attention factor, perplexity on the search samples, held-out perplexity by length."""
    target = max(lengths)
    return pd.DataFrame(
        [
            {
                "method": result.name,
                "attention factor": result.attention_factor,
                f"search {format_length(target)}": result.search,
                **{f"held-out {format_length(length)}": result.held_out(length) for length in lengths},
            }
            for result in results
        ]
    )


def _prefix(score: BlockScore, length: int, scored: int) -> tuple[float, int]:
    if length == scored:
        return score.total, score.tokens
    assert length % BLOCK == 0, "only whole blocks can be cut off"
    return math.fsum(score.nll[: length // BLOCK]), length - 1
