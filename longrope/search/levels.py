"""Levels of a coarse-to-fine search: what a few numbers, some knots or all pairs can say about the factors.

A level turns any vector of real numbers, its genes, into a candidate of the search space. Genes are in units of what
is worth trying: vectors drawn from a standard normal distribution around ``start`` are sensible candidates.
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

ATTENTION_UNIT = 0.06
"""Of the attention factor's gene: relative change."""
LEAST_TURN = 0.2
"""Of a pair within the present window; of those that turn less, no angle but a small one was seen in training."""
FARTHEST = 1000.0
"""Genes beyond it, either way, count as it: every bound of a space is nearer, and nothing overflows."""


class Level(ABC):
    """A way to describe candidates by fewer numbers than they have, or as many.

    Attributes:
        space: that every decoded candidate is in.
        start: the genes to begin with, (size,).
    """

    space: SearchSpace
    start: Genes

    @property
    def size(self) -> int:
        return len(self.start)

    @property
    def choices(self) -> int:
        """How many n_hat the last gene chooses among; 0 where it is a gene like the others."""
        return 0

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


class RampLevel(Level):
    """Four numbers, and the attention factor where it is searched: a ramp of log lambda over the pairs.

    Above the present factors, log lambda rises from 0 at the pair that makes some number of turns within the present
    window, over some width in log turns, to some height: ``height * t ** shape`` with t from 0 to 1. YaRN is such a
    ramp with everything fixed (arXiv 2309.00071, section 3.2). At ``start`` it begins at 16 turns, ends at 0.2, and
    reaches 1.2 log ratio, with an exponent of 1.5: slow pairs, of which no whole turn was seen in training, do well
    with lambda beyond the ratio (arXiv 2502.20082, section 3).
    """

    TURNS, WIDTH, HEIGHT, SHAPE = math.log(16), math.log(80), math.exp(0.2), 1.5
    SPREAD = (0.7, 0.3, 0.3, 0.4)

    def __init__(self, space: SearchSpace, ramp: Ramp) -> None:
        self.space = space
        self.start = np.zeros(4 + space.searches_attention)
        self._floor = np.log(np.asarray(ramp.present.lambdas))
        self._turns = np.log(ramp.present.inv_freq() * ramp.window / (2 * math.pi))
        self._height = math.log(ramp.ratio)

    def decode(self, genes: Genes) -> Candidate:
        start, width, height, shape = np.clip(genes[:4], -FARTHEST, FARTHEST) * self.SPREAD
        t = np.clip((self.TURNS + start - self._turns) / (self.WIDTH * np.exp(width)), 0, 1)
        rise = self._height * self.HEIGHT * np.exp(height) * t ** (self.SHAPE * np.exp(shape))
        return _candidate(self.space, self._floor + rise, 0, genes[4:])


class KnotLevel(Level):
    """Changes of log lambda at some pairs, straight lines between them, around a known candidate.

    A gene moves the pairs up to the knots beside its own and leaves the others as they are. Where lambdas would then
    fall from a pair to the next the space keeps them level, so that every vector is a candidate. With as many knots as
    pairs each gene is a pair's.

    Args:
        centre: what the genes at ``start`` stand for, once it is projected into the space.
        knots: places among the pairs, rising, from 0 to the last pair; for one pair just 0.
        chooses_n_hat: whether the last gene is the place of n_hat among the choices, which are ordered.
    """

    UNIT = 0.05
    """Of log lambda."""

    def __init__(self, space: SearchSpace, centre: Candidate, knots: Genes, chooses_n_hat: bool) -> None:
        assert knots[0] == 0
        assert knots[-1] == space.pairs - 1
        self.space = space
        centre = space.project(centre)
        self._n_hat = space.n_hat_choices.index(centre.n_hat)
        self._choices = len(space.n_hat_choices) if chooses_n_hat else 0
        self._centre = np.log(centre.lambdas)
        # (pairs, knots): triangles about the knots.
        self._hats = np.stack([np.interp(np.arange(space.pairs), knots, row) for row in np.eye(len(knots))], axis=1)
        attention = math.log(centre.attention_factor / space.attention_factor) / ATTENTION_UNIT
        self.start = np.array(
            [0.0] * len(knots) + [attention] * space.searches_attention + [float(self._n_hat)] * chooses_n_hat
        )
        self._knots = len(knots)

    @property
    def choices(self) -> int:
        return self._choices

    def decode(self, genes: Genes) -> Candidate:
        moved = self.UNIT * self._hats @ np.clip(genes[: self._knots], -FARTHEST, FARTHEST)
        n_hat = round(float(np.clip(genes[-1], 0, self._choices - 1))) if self._choices else self._n_hat
        attention = genes[self._knots : self._knots + self.space.searches_attention]
        return _candidate(self.space, self._centre + moved, n_hat, attention)


def knots_of(pairs: int, count: int, ramp: Ramp | None) -> Genes:
    """Places of ``count`` knots, or as many as there are pairs: evenly spaced over the pairs whose lambdas matter.

    Those that make less than some share of a turn within the present window share the last interval.
    """
    if count >= pairs:
        return np.arange(float(pairs))
    if ramp is None:
        return np.linspace(0, pairs - 1, count)
    turns = ramp.present.inv_freq() * ramp.window / (2 * math.pi)
    slow = int((turns >= LEAST_TURN).sum())
    return np.append(np.linspace(0, min(max(slow, count - 2), pairs - 2), count - 1), pairs - 1.0)


def _candidate(space: SearchSpace, log_lambdas: Genes, n_hat: int, attention: Genes) -> Candidate:
    """The candidate of the space nearest to these values; n_hat is a place among its choices."""
    # Clipped before exp, which would overflow long after lambda_max.
    lambdas = np.exp(np.clip(log_lambdas, math.log(space.lambda_min), math.log(space.lambda_max)))
    factor = space.attention_factor
    if space.searches_attention:
        factor = space.nearest_attention(factor * math.exp(float(np.clip(attention[0] * ATTENTION_UNIT, -1, 1))))
    wanted = Candidate(tuple(lambdas.tolist()), space.n_hat_choices[n_hat], factor)
    return space.project(wanted)
