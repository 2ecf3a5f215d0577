"""Levels of a coarse-to-fine search: what a few numbers, or one for every pair, can say about the factors.

A level turns any vector of real numbers, its genes, into a candidate of the search space.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longrope.rope.factors import RopeFactors
from longrope.search.candidate import Candidate
from longrope.search.space import SearchSpace

Genes = npt.NDArray[np.float64]

FIRST_RAMPS = 2
"""Which ones a genetic search of an unscaled model begins with; by rule 1, which was not recorded, the start alone. A
run is gone on with by the rule it was begun with, or not at all."""
MOST_TURNS = 32
"""Of the pair where the second ramp begins, within the present window: no more than YaRN's (arXiv 2309.00071)."""
ATTENTION_UNIT = 0.06
"""Of the attention factor's gene: relative change."""
MANY_TURNS = 8
"""Of a pair within the present window; those that turn as often have seen all of their angles many times."""
LEAST_TURN = 0.2
"""Of a pair within the present window; of those that turn less, no angle but a small one was seen in training."""
FARTHEST = 1000.0
"""Genes beyond it, either way, count as it: every bound of a space is nearer, and nothing overflows."""


class Level(ABC):
    """A way to describe candidates by fewer numbers than they have, or as many.

    Attributes:
        space: that every decoded candidate is in.
        start: the genes to begin with, (size,). Those of the lambdas come first, then that of the attention factor
            where it is searched, then that of n_hat where it is chosen.
        spread: of candidates to begin with, about the start: a standard deviation, in units of its genes.
        reach: how far it may be worth going in one step.
        others: genes that are worth trying as they are, besides ``start``; CMA-ES cannot begin with them.
    """

    space: SearchSpace
    start: Genes
    spread: float
    reach: float
    others: tuple[Genes, ...] = ()

    @property
    def size(self) -> int:
        return len(self.start)

    @property
    def choices(self) -> int:
        """How many n_hat the last gene chooses among; 0 where it is a gene like the others."""
        return 0

    @property
    def extras(self) -> int:
        """How many genes come after those of the lambdas."""
        return int(self.space.searches_attention) + (self.choices > 0)

    def moved(self, genes: Genes, begin: int, end: int, step: float) -> Genes:
        """``genes`` with those from ``begin`` to before ``end``, of lambdas, changed by ``step``."""
        changed: Genes = genes.copy()
        changed[begin:end] += step
        return changed

    @abstractmethod
    def decode(self, genes: Genes) -> Candidate:
        """The candidate that ``genes`` (size,) stand for; every vector of finite numbers is one."""


@dataclass(frozen=True)
class Ramp:
    """Where a ramp may begin: the model's present factors, and how many times longer the target is.

    Attributes:
        present: factors of the model as it is, for its present window.
        window: tokens of that window.
        ratio: target over present window, above 1.
    """

    present: RopeFactors
    window: int
    ratio: float

    @property
    def unscaled(self) -> bool:
        """Whether the model is as its rope_theta has it."""
        return set(self.present.lambdas) == {1.0}

    def turns(self) -> Genes:
        """Of each pair within the present window, (pairs,)."""
        turns: Genes = self.present.inv_freq() * self.window / (2 * math.pi)
        return turns

    def moved_pairs(self) -> tuple[int, int]:
        """The first and the last pair that are worth moving by themselves, at least one.

        Faster ones are best left as they are: what is gained on some texts is lost on others. Slower ones hardly turn,
        and may go along with the last.
        """
        turns = self.turns()
        first = min(int((turns >= MANY_TURNS).sum()), len(turns) - 1)
        return first, max(first, min(int((turns >= LEAST_TURN).sum()), len(turns) - 1))


class RampLevel(Level):
    """Four numbers, and the attention factor where it is searched: a ramp of log lambda over the pairs.

    Above the present factors, log lambda rises from 0 at the pair that makes some number of turns within the present
    window, over some width in log turns, to some height: ``height * t ** shape`` with t from 0 to 1. YaRN is such a
    ramp with everything fixed (arXiv 2309.00071, section 3.2). At ``start`` it begins at 16 turns, ends at 0.2, and
    reaches 1.2 log ratio, with an exponent of 1.5: slow pairs, of which no whole turn was seen in training, do well
    with lambda beyond the ratio (arXiv 2502.20082, section 3).

    For a model that was not scaled before, ``others`` has a second one: from ``ratio`` turns, but 32 at most, to half a
    turn, log ratio high, with an exponent of 2. One that was is used to another ramp already.
    """

    TURNS, WIDTH, HEIGHT, SHAPE = math.log(16), math.log(80), math.exp(0.2), 1.5
    SPREAD = (0.7, 0.3, 0.3, 0.4)
    spread, reach = 0.8, 2.0

    def __init__(self, space: SearchSpace, ramp: Ramp) -> None:
        self.space = space
        self.start = np.zeros(4 + space.searches_attention)
        self._floor = np.log(np.asarray(ramp.present.lambdas))
        self._turns = np.log(ramp.turns())
        self._height = math.log(ramp.ratio)
        self.others = (self._steep(),) if ramp.unscaled else ()

    def _steep(self) -> Genes:
        """The genes of the second ramp, (size,)."""
        start = min(self._height, math.log(MOST_TURNS))
        width = (start - math.log(0.5)) / self.WIDTH
        changes = [start - self.TURNS, math.log(width), -math.log(self.HEIGHT), math.log(2.0 / self.SHAPE)]
        genes: Genes = self.start.copy()
        genes[:4] = np.divide(changes, self.SPREAD)
        return genes

    def decode(self, genes: Genes) -> Candidate:
        start, width, height, shape = np.clip(genes[:4], -FARTHEST, FARTHEST) * self.SPREAD
        t = np.clip((self.TURNS + start - self._turns) / (self.WIDTH * np.exp(width)), 0, 1)
        rise = self._height * self.HEIGHT * np.exp(height) * t ** (self.SHAPE * np.exp(shape))
        return _candidate(self.space, self._floor + rise, 0, genes[4:])


class PairLevel(Level):
    """A gene for every pair from the first to the last that are moved, its log lambda, around a known candidate.

    Pairs before them stay as they are there, and those after them keep their distance from the last. Where lambdas
    would fall from a pair to the next the space keeps them level, so that every vector is a candidate.

    Args:
        centre: what the genes at ``start`` stand for, once it is projected into the space.
        first, last: pairs that have genes.
        chooses_n_hat: whether the last gene is the place of n_hat among the choices, which are ordered.
    """

    UNIT = 0.05
    """Of log lambda."""
    spread, reach = 2.0, 16.0

    def __init__(self, space: SearchSpace, centre: Candidate, first: int, last: int, chooses_n_hat: bool) -> None:
        self.space = space
        centre = space.project(centre)
        self._n_hat = space.n_hat_choices.index(centre.n_hat)
        self._choices = len(space.n_hat_choices) if chooses_n_hat else 0
        attention = math.log(centre.attention_factor / space.attention_factor) / ATTENTION_UNIT
        logs = np.log(centre.lambdas)
        self._pairs = last - first + 1
        self._fixed, self._beyond = logs[:first], logs[last + 1 :] - logs[last]
        self._lowest = max([math.log(space.lambda_min), *self._fixed]) / self.UNIT
        self._highest = math.log(space.lambda_max) / self.UNIT
        self.start = np.concatenate(
            [
                logs[first : last + 1] / self.UNIT,
                [attention] * space.searches_attention,
                [float(self._n_hat)] * chooses_n_hat,
            ]
        )

    @property
    def choices(self) -> int:
        return self._choices

    def moved(self, genes: Genes, begin: int, end: int, step: float) -> Genes:
        """A block of neighbours, which takes along those beside it that would keep it from moving.

        Faster pairs come down with it and slower ones go up: otherwise a block that is level with its neighbours could
        not come down at all. Nothing leaves the bounds of the space.
        """
        changed: Genes = genes.copy()
        lambdas = self._risen(changed[: self._pairs])
        lambdas[begin:end] += step
        lambdas[:begin] = np.minimum(lambdas[:begin], lambdas[begin])
        lambdas[end:] = np.maximum(lambdas[end:], lambdas[end - 1])
        changed[: self._pairs] = np.clip(lambdas, self._lowest, self._highest)
        return changed

    def _risen(self, lambdas: Genes) -> Genes:
        """Genes of lambdas within the bounds, none of them below the one before."""
        risen: Genes = np.maximum.accumulate(np.clip(lambdas, self._lowest, self._highest))
        return risen

    def decode(self, genes: Genes) -> Candidate:
        logs = self.UNIT * self._risen(genes[: self._pairs])
        n_hat = round(float(np.clip(genes[-1], 0, self._choices - 1))) if self._choices else self._n_hat
        attention = genes[self._pairs : self._pairs + self.space.searches_attention]
        return _candidate(self.space, np.concatenate([self._fixed, logs, logs[-1] + self._beyond]), n_hat, attention)


def _candidate(space: SearchSpace, log_lambdas: Genes, n_hat: int, attention: Genes) -> Candidate:
    """The candidate of the space nearest to these values; n_hat is a place among its choices."""
    # Clipped before exp, which would overflow long after lambda_max.
    lambdas = np.exp(np.clip(log_lambdas, math.log(space.lambda_min), math.log(space.lambda_max)))
    factor = space.attention_factor
    if space.searches_attention:
        factor = space.nearest_attention(factor * math.exp(float(np.clip(attention[0] * ATTENTION_UNIT, -1, 1))))
    wanted = Candidate(tuple(lambdas.tolist()), space.n_hat_choices[n_hat], factor)
    return space.project(wanted)
