"""A genetic algorithm over the genes of a level: blocks of neighbours move together, by steps of every size.

The perplexity over the lambdas has several optima, some of which differ in one pair alone, by a step that gains nothing
until it is made in full. A step that adapts to what has led to survivors grows small and stays in one of them; steps
whose logarithms are drawn evenly, at all times, do not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from longrope.search.candidate import Candidate
from longrope.search.levels import Genes, Level
from longrope.search.optimiser import Optimiser

SMALLEST = 1 / 32
"""Step, of the farthest that the level reaches."""
TO_THE_END = 0.3
"""Share of blocks that reach to the last gene: what a change of one increment of log lambda does."""
CROSSED = 0.25
"""How often a child is made of two parents, who may be the same; what comes of it may be known, and is not taken."""
ASIDE = 0.25
"""Share of the others, where n_hat or the attention factor has a gene, in which it changes instead of lambdas."""
FARTHEST_ASIDE = 2.0
"""Step of the attention factor's gene, in its units."""
TRIES = 100
"""To make one child that is not known yet."""


class _Parent(NamedTuple):
    genes: Genes
    score: float


class GeneticOptimiser(Optimiser):
    """Plus selection: the parents are the best few of all so far that were scored in full, and no child is known.

    A child is its parent with one block of lambdas moved, or with another attention factor or n_hat; or it has a block
    of a second parent's genes, or lies on the line through both. Before all children come the start, if it has no
    score, and the level's others.
    """

    survivors = 4

    def __init__(self, level: Level, round_size: int, seed: int, start_score: float | None = None) -> None:
        super().__init__(level, round_size, seed, start_score)
        self._random = np.random.default_rng(seed)
        self._parents = [] if start_score is None else [_Parent(level.start, start_score)]
        self._first = [level.start, *level.others] if start_score is None else [*level.others]

    def ask(self, known: Collection[Candidate]) -> list[Genes]:
        children: dict[Candidate, Genes] = {}
        for _ in range(TRIES * self.round_size):
            child = self._first.pop(0) if self._first else self._child()
            candidate = self.level.decode(child)
            if candidate not in known:
                children.setdefault(candidate, child)
            if len(children) == self.round_size:
                break
        return list(children.values())

    def tell(self, genes: Sequence[Genes], scores: Sequence[float], dropped: Sequence[bool]) -> None:
        told = [
            _Parent(each, score)
            for each, score, left in zip(genes, scores, dropped, strict=True)
            if math.isfinite(score) and not left
        ]
        self._parents = sorted(self._parents + told, key=lambda each: each.score)[: self.survivors]

    def _child(self) -> Genes:
        random, level = self._random, self.level
        if not self._parents:
            return self._counted(level.start + level.spread * random.normal(size=level.size))
        parent = self._one_of_the_parents()
        if random.random() < CROSSED:
            return self._crossed(parent, self._one_of_the_parents())
        if level.extras and random.random() < ASIDE:
            return self._changed_aside(parent)
        begin, end = self._block(level.size - level.extras)
        return level.moved(parent, begin, end, self._step(level.reach))

    def _one_of_the_parents(self) -> Genes:
        return self._parents[self._random.integers(len(self._parents))].genes

    def _crossed(self, first: Genes, second: Genes) -> Genes:
        blend: Genes = first + self._random.uniform(-0.25, 1.25) * (second - first)
        begin, end = self._block(self.level.size)
        segment = np.concatenate([first[:begin], second[begin:end], first[end:]])
        return self._counted(blend if self._random.random() < 0.5 else segment)

    def _changed_aside(self, parent: Genes) -> Genes:
        level, changed = self.level, parent.copy()
        place = level.size - 1 - int(self._random.integers(level.extras))
        if level.choices and place == level.size - 1:
            changed[place] += self._random.choice([-1, 1]) * math.ceil(abs(self._step(level.choices)))
        else:
            changed[place] += self._step(FARTHEST_ASIDE)
        return self._counted(changed)

    def _counted(self, genes: Genes) -> Genes:
        """With a whole number for n_hat, where it is a gene."""
        if self.level.choices:
            genes[-1] = np.clip(np.round(genes[-1]), 0, self.level.choices - 1)
        return genes

    def _block(self, size: int) -> tuple[int, int]:
        """Where it begins and ends; the logarithm of its length is drawn evenly, too."""
        length = min(int(math.exp(self._random.uniform(0, math.log(size + 1)))), size)
        begin = int(self._random.integers(size - length + 1))
        return begin, size if self._random.random() < TO_THE_END else begin + length

    def _step(self, reach: float) -> float:
        size = reach * math.exp(self._random.uniform(math.log(SMALLEST), 0))
        return float(size * self._random.choice([-1, 1]))
