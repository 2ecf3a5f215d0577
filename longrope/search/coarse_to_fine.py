"""CoarseToFine: a search that first moves a few numbers, then some knots, and at last every lambda by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longrope.exceptions import SettingsError
from longrope.search.algorithm import Scored, SearchAlgorithm, cut, quantised_seeds
from longrope.search.candidate import Candidate
from longrope.search.levels import Genes, KnotLevel, Level, Ramp, RampLevel, knot_shapes
from longrope.search.optimiser import Optimiser
from longrope.search.space import ATTENTION_STEP, SearchSpace

KNOTS = 10
TRIES = 30
"""Rounds in a row that may bring nothing new before a level ends: every candidate near its best is known."""
FINEST = 2
"""Number of the last level."""


@dataclass(frozen=True)
class CoarseToFineSettings:
    """Sizes of a coarse-to-fine search.

    Attributes:
        population: candidates of a round.
        max_evaluations: candidates in all.
        coarse: candidates before the ramp gives way to knots, where there is a ramp.
        knots: candidates before the knots give way to all pairs.

    Raises:
        SettingsError: if a size cannot be used.
    """

    population: int = 8
    max_evaluations: int = 200
    coarse: int = 48
    knots: int = 400

    def __post_init__(self) -> None:
        for name, least in (("population", 2), ("max_evaluations", 1), ("coarse", 0), ("knots", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name.replace('_', ' ')} is {getattr(self, name)}; give at least {least}")

    @property
    def round_size(self) -> int:
        """Candidates of a usual round."""
        return self.population

    @property
    def most(self) -> int:
        """Candidates that are asked for at most."""
        return self.max_evaluations

    def rounds(self, seeds: int) -> list[int]:
        """Candidates of each round, from so many seeds, if none is proposed twice."""
        later = max(0, self.max_evaluations - seeds)
        return cut([seeds, *[self.population] * -(-later // self.population)], self.max_evaluations)


class CoarseToFine(SearchAlgorithm):
    """Round 0 is the seeds; then one optimiser a level, each from the best candidate that the levels before it found.

    Seeds are scored as they are (quantised only), inside the space or not.

    Args:
        ramp: what the first level starts from; without one the search begins with knots about the best seed.
        settings: its sizes.
        seed: of the random numbers.
        optimiser: what searches the genes of a level.

    Raises:
        SettingsError: if there are no seeds, or one has another number of lambdas than the space.
    """

    def __init__(
        self,
        space: SearchSpace,
        seeds: Sequence[Candidate],
        ramp: Ramp | None,
        settings: CoarseToFineSettings,
        seed: int,
        optimiser: type[Optimiser],
    ) -> None:
        super().__init__()
        self.space = space
        self.seeds = quantised_seeds(space, seeds)
        self.settings = settings
        self._ramp = ramp
        self._make = optimiser
        self._random = np.random.default_rng(seed)
        self._stage = -1
        self._optimiser: Optimiser | None = None
        self._genes: list[Genes] = []
        self._candidates: list[Candidate] = []
        self._known: dict[Candidate, Scored] = {}

    def _propose(self) -> list[Candidate]:
        left = self.settings.max_evaluations - len(self.history)
        if self.round == 0:
            return self.seeds[:left]
        if left <= 0 or self.best is None:
            return []
        self._known.update((scored.candidate, scored) for scored in self.history[len(self._known) :])
        for stage in range(max(self._stage, self._due_stage()), FINEST + 1):
            self._enter_stage(stage)
            for _ in range(TRIES):
                self._learn()
                assert self._optimiser is not None
                self._genes = self._optimiser.ask()
                self._candidates = [self._optimiser.level.decode(genes) for genes in self._genes]
                new = [each for each in dict.fromkeys(self._candidates) if each not in self._known]
                if new:
                    return new[:left]
        return []

    def _learn(self) -> None:
        """Tell the optimiser of the level what it asked for last, now that all of it is known."""
        if self._optimiser is not None and self._genes:
            known = [self._known[candidate] for candidate in self._candidates]
            self._optimiser.tell(self._genes, [each.score for each in known], [each.error for each in known])
            self._genes = []

    def _due_stage(self) -> int:
        """The level whose candidates are not spent."""
        told = len(self.history)
        return 0 if self._ramp and told < self.settings.coarse else 1 if told < self.settings.knots else FINEST

    def _enter_stage(self, stage: int) -> None:
        if stage != self._stage:
            self._stage = stage
            seed = int(self._random.integers(2**31))
            level = self._level(stage)
            self._genes = []
            self._optimiser = self._make(level, self.settings.population, seed, self._start_score(level))

    def _start_score(self, level: Level) -> float | None:
        """The best score, if the level starts at its candidate: the best seed may be outside the space."""
        assert self.best is not None
        best, score = self.best
        start = level.decode(level.start)
        rounded = abs(start.attention_factor - best.attention_factor) < ATTENTION_STEP
        return score if rounded and (start.lambdas, start.n_hat) == (best.lambdas, best.n_hat) else None

    def _level(self, stage: int) -> Level:
        if stage == 0:
            assert self._ramp is not None
            return RampLevel(self.space, self._ramp)
        assert self.best is not None
        pairs = self.space.pairs
        shapes = knot_shapes(pairs, KNOTS if stage == 1 else pairs, self._ramp)
        chooses = len(self.space.n_hat_choices) > 1
        return KnotLevel(self.space, self.best[0], shapes, chooses)
