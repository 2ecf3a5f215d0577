"""Overfitting watched: held-out perplexity beside that of the search, every few rounds. Nothing is chosen by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from longrope.data.samples import Sample
from longrope.model.score import perplexity
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.search.scorer import Scorer


@dataclass(frozen=True)
class Look:
    """The best candidate of a moment on held-out documents.

    Attributes:
        evaluations: candidates until then.
        search: perplexity on the search samples.
        held_out: perplexity on the held-out documents.
        standard_error: of ``held_out``, from how documents differ.
    """

    evaluations: int
    search: float
    held_out: float
    standard_error: float


class Watch:
    """Looks of one search."""

    def __init__(self, held_out: Sequence[Sample]) -> None:
        self._held_out = held_out
        self._candidate: Candidate | None = None
        self._losses: list[float] = []
        self.looks: list[Look] = []

    def look(self, scorer: Scorer, evaluations: int, best: Candidate, search: float) -> str | None:
        """Score ``best`` if it is a new one; what to tell of it in one line, if anything."""
        if best == self._candidate or len(self._held_out) < 2:
            return None
        tasks = [Task(best, sample.digest) for sample in self._held_out]
        found = scorer.score(tasks)
        scores = [result for task in tasks if isinstance(result := found[task], BlockScore)]
        if len(scores) < len(tasks):
            return None  # the comparison at the end says which failed
        losses = [score.total / score.tokens for score in scores]
        value = perplexity(math.fsum(score.total for score in scores), sum(score.tokens for score in scores))
        now = Look(evaluations, search, value, value * _standard_error(losses))
        text = f"after {evaluations} candidates: search {search:.4f}, held-out {value:.4f} ± {now.standard_error:.4f}"
        if self.looks:
            changes = [new - old for new, old in zip(losses, self._losses, strict=True)]
            worse = math.fsum(changes) / len(changes)
            if worse > _standard_error(changes) and search < self.looks[-1].search:
                text += "; held-out documents do worse while the search goes on improving: use more samples or stop"
        self._candidate, self._losses = best, losses
        self.looks.append(now)
        return text


def _standard_error(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
