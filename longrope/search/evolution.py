"""A genetic algorithm over the genes of a level: it adapts its own step sizes, and its children are cut and blended.

Step sizes are genes themselves: each child inherits and varies that of its parent (self-adaptation, Beyer and
Schwefel 2002), so that steps which lead to survivors spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from longrope.search.levels import Genes, Level
from longrope.search.optimiser import Optimiser

FIRST_STEP, SMALLEST_STEP = 0.7, 0.02
"""Of a mutation, in the units of the genes."""
CROSSED = 0.6
"""Share of children that have two parents."""


class _Individual(NamedTuple):
    genes: Genes
    step: float
    score: float


class GeneticOptimiser(Optimiser):
    """Plus selection: as many parents as a round has children, the best of all so far.

    A child of two parents is a blend of them (BLX, Eshelman and Schaffer 1993) or has a segment of the second's genes;
    then it is mutated, in one block of neighbouring genes or in all. Whole-number genes move by whole numbers.
    """

    def __init__(self, level: Level, round_size: int, seed: int, start_score: float | None = None) -> None:
        super().__init__(level, round_size, seed, start_score)
        self._random = np.random.default_rng(seed)
        known = [] if start_score is None else [_Individual(level.start, FIRST_STEP, start_score)]
        self._parents: list[_Individual] = known
        self._steps: list[float] = []

    def ask(self) -> list[Genes]:
        children = [self._child() for _ in range(self.round_size)]
        self._steps = [step for _, step in children]
        return [genes for genes, _ in children]

    def tell(self, genes: Sequence[Genes], scores: Sequence[float], errors: Sequence[float]) -> None:
        told = zip(genes, self._steps, scores, strict=True)
        everyone = self._parents + [_Individual(*each) for each in told if math.isfinite(each[2])]
        self._parents = sorted(everyone, key=lambda each: each.score)[: self.round_size]

    def _child(self) -> tuple[Genes, float]:
        random = self._random
        if len(self._parents) < 2:
            return self._mutated(self.level.start, FIRST_STEP), FIRST_STEP
        first, second = (self._parents[self._rank()] for _ in range(2))
        genes, step = first.genes, first.step
        if random.random() < CROSSED and second is not first:
            step = math.sqrt(first.step * second.step)
            if random.random() < 0.5:
                genes = genes + random.uniform(-0.25, 1.25) * (second.genes - genes)
            else:
                begin, end = sorted(random.integers(0, self.level.size + 1, 2))
                genes = np.concatenate([genes[:begin], second.genes[begin:end], genes[end:]])
        rate = 1 / math.sqrt(2 * math.sqrt(self.level.size))
        step = min(max(step * math.exp(rate * random.normal()), SMALLEST_STEP), FIRST_STEP)
        return self._mutated(genes, step), step

    def _rank(self) -> int:
        """A parent's place, the better the likelier."""
        return int(len(self._parents) * self._random.random() ** 2)

    def _mutated(self, genes: Genes, step: float) -> Genes:
        random, size = self._random, self.level.size
        change = step * random.normal(size=size)
        if random.random() < 0.5:
            begin, end = sorted(random.integers(0, size + 1, 2))
            outside = np.ones(size, bool)
            outside[begin : max(end, begin + 1)] = False
            change[outside] = 0.0
        if self.level.choices:
            change[-1] = random.integers(-1, 2)
        mutated: Genes = genes + change
        if self.level.choices:
            mutated[-1] = np.clip(np.round(mutated[-1]), 0, self.level.choices - 1)
        return mutated
