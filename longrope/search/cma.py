"""CMA-ES over the genes of a level, by the ``cmaes`` library; with margin where n_hat is one of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from longrope.search.candidate import Candidate
from longrope.search.levels import Genes, Level
from longrope.search.optimiser import Optimiser

WIDEST = 50.0
"""Bound of genes that count nothing, in their units about the start, which CMA-ES with margin asks for: as good as
none."""


class CMAOptimiser(Optimiser):
    """Covariance matrix adaptation (Hansen, arXiv 1604.00772).

    With a gene that counts, its mixed-integer variant (Hamano et al., arXiv 2205.13482), which keeps a margin of
    probability for every choice.
    """

    def __init__(self, level: Level, round_size: int, seed: int, start_score: float | None = None) -> None:
        super().__init__(level, round_size, seed, start_score)
        from cmaes import CMA, CMAwM

        options: dict[str, Any] = {
            "mean": level.start.copy(),
            "sigma": level.spread,
            "seed": seed,
            "population_size": round_size,
        }
        if level.choices:
            bounds = np.stack([level.start - WIDEST, level.start + WIDEST], axis=1)
            bounds[-1] = 0, level.choices - 1
            steps = np.zeros(level.size)
            steps[-1] = 1
            self._cma: Any = CMAwM(**options, bounds=bounds, steps=steps)
        else:
            self._cma = CMA(**options)
        self._told_back: list[Genes] = []

    def ask(self, known: Collection[Candidate]) -> list[Genes]:
        asked = [self._cma.ask() for _ in range(self.round_size)]
        if not self.level.choices:
            self._told_back = asked
            return list(asked)
        # With margin the library evaluates one vector and learns from another.
        self._told_back = [learned for _, learned in asked]
        return [evaluated for evaluated, _ in asked]

    def tell(self, genes: Sequence[Genes], scores: Sequence[float], dropped: Sequence[bool]) -> None:
        # Only the order of the scores matters to it; an infinite one would make it compute with nan.
        worst = max((score for score in scores if np.isfinite(score)), default=0.0)
        finite = [score if np.isfinite(score) else worst + 1.0 for score in scores]
        self._cma.tell(list(zip(self._told_back, finite, strict=True)))
