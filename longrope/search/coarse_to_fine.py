"""CoarseToFine: a search that first moves the four numbers of a ramp, and then every lambda by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longrope.exceptions import SettingsError
from longrope.search.algorithm import Scored, SearchAlgorithm, cut, quantised_seeds
from longrope.search.candidate import Candidate
from longrope.search.levels import Genes, Level, PairLevel, Ramp, RampLevel
from longrope.search.optimiser import Optimiser
from longrope.search.space import ATTENTION_STEP, SearchSpace

RAMP, PAIRS = range(2)
"""The levels, in their order."""
TRIES = 30
"""Rounds in a row that may bring nothing new before a level ends: of CMA-ES, which may ask for what is known again."""


@dataclass(frozen=True)
class CoarseToFineSettings:
    """Sizes of a coarse-to-fine search.

    Attributes:
        population: candidates of a round.
        max_evaluations: candidates in all.
        coarse: candidates before the ramp gives way to all pairs, where there is a ramp.

    Raises:
        SettingsError: if a size cannot be used.
    """

    population: int = 8
    max_evaluations: int = 200
    coarse: int = 48

    def __post_init__(self) -> None:
        for name, least in (("population", 2), ("max_evaluations", 1), ("coarse", 0)):
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
        ramp: what the first level starts from; without one all pairs are moved from the best seed on.
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
        self.survivors = optimiser.survivors
        self._random = np.random.default_rng(seed)
        self._stage, self._begun = -1, 0
        self._optimiser: Optimiser | None = None
        self._start: Candidate | None = None
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
        for stage in range(max(self._stage, self._due_stage()), PAIRS + 1):
            self._enter_stage(stage)
            for _ in range(TRIES):
                self._learn()
                assert self._optimiser is not None
                self._genes = self._optimiser.ask(self._known)
                self._candidates = [self._optimiser.level.decode(genes) for genes in self._genes]
                new = [each for each in dict.fromkeys(self._candidates) if each not in self._known]
                if new:
                    return new[:left]
                if not self._genes:
                    break
        return []

    def _learn(self) -> None:
        """Tell the optimiser of the level what it asked for last, now that all of it is known."""
        if self._optimiser is not None and self._genes:
            known = [self._known[candidate] for candidate in self._candidates]
            self._optimiser.tell(self._genes, [each.score for each in known], [each.dropped for each in known])
            self._genes = []

    def _counts(self, scored: Scored) -> bool:
        """Each level goes on from its own candidates alone, and the one that it began with."""
        return scored.round >= self._begun or scored.candidate == self._start

    def _due_stage(self) -> int:
        """The level whose candidates are not spent."""
        return RAMP if self._ramp and len(self.history) < self.settings.coarse else PAIRS

    def _enter_stage(self, stage: int) -> None:
        if stage != self._stage:
            self._stage, self._begun = stage, self.round
            seed = int(self._random.integers(2**31))
            level = self._level(stage)
            self._genes = []
            score = self._start_score(level)
            self._start = None if score is None or self.best is None else self.best[0]
            self._optimiser = self._make(level, self.settings.population, seed, score)

    def _start_score(self, level: Level) -> float | None:
        """The best score, if the level starts at its candidate: the best seed may be outside the space."""
        assert self.best is not None
        best, score = self.best
        start = level.decode(level.start)
        rounded = abs(start.attention_factor - best.attention_factor) < ATTENTION_STEP
        return score if rounded and (start.lambdas, start.n_hat) == (best.lambdas, best.n_hat) else None

    def _level(self, stage: int) -> Level:
        if stage == RAMP:
            assert self._ramp is not None
            return RampLevel(self.space, self._ramp)
        assert self.best is not None
        first, last = self._ramp.moved_pairs() if self._ramp else (0, self.space.pairs - 1)
        return PairLevel(self.space, self.best[0], first, last, len(self.space.n_hat_choices) > 1)
