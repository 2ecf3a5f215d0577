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
MANY_TURNS = 16
"""Of a pair within the present window; those that turn as often have seen all of their angles many times."""
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
    """Changes of log lambda of some pairs together, around a known candidate.

    Where lambdas would then fall from a pair to the next the space keeps them level, so that every vector is a
    candidate.

    Args:
        centre: what the genes at ``start`` stand for, once it is projected into the space.
        shapes: how much each gene moves each pair, (pairs, genes); see :func:`knot_shapes`.
        chooses_n_hat: whether the last gene is the place of n_hat among the choices, which are ordered.
    """

    UNIT = 0.05
    """Of log lambda."""

    def __init__(self, space: SearchSpace, centre: Candidate, shapes: Genes, chooses_n_hat: bool) -> None:
        assert len(shapes) == space.pairs, shapes.shape
        self.space = space
        centre = space.project(centre)
        self._n_hat = space.n_hat_choices.index(centre.n_hat)
        self._choices = len(space.n_hat_choices) if chooses_n_hat else 0
        self._centre = np.log(centre.lambdas)
        self._shapes = shapes
        attention = math.log(centre.attention_factor / space.attention_factor) / ATTENTION_UNIT
        self._knots = shapes.shape[1]
        self.start = np.array(
            [0.0] * self._knots + [attention] * space.searches_attention + [float(self._n_hat)] * chooses_n_hat
        )

    @property
    def choices(self) -> int:
        return self._choices

    def decode(self, genes: Genes) -> Candidate:
        moved = self.UNIT * self._shapes @ np.clip(genes[: self._knots], -FARTHEST, FARTHEST)
        n_hat = round(float(np.clip(genes[-1], 0, self._choices - 1))) if self._choices else self._n_hat
        attention = genes[self._knots : self._knots + self.space.searches_attention]
        return _candidate(self.space, self._centre + moved, n_hat, attention)


def knot_shapes(pairs: int, count: int, ramp: Ramp | None) -> Genes:
    """How much each gene moves log lambda of each pair, (pairs, genes): 1 at a knot, 0 at those beside it.

    There are ``count`` knots, or fewer where they would fall on the same pairs, evenly spaced over those pairs whose
    lambdas matter. Pairs of many turns within the present window are left as they are, up to the first knot, which has
    no gene: what is gained there on some texts is lost on others. Pairs of hardly a turn share the last interval. With
    as many knots as pairs, each has a gene of its own.
    """
    if count >= pairs:
        return np.eye(pairs)
    first, last = -1, pairs - 1
    if ramp is not None:
        turns = ramp.present.inv_freq() * ramp.window / (2 * math.pi)
        first = min(int((turns >= MANY_TURNS).sum()), last) - 1
        last = int((turns >= LEAST_TURN).sum())
    places = np.linspace(max(first, 0), np.clip(last, max(first, 0) + 1, pairs - 1), count - (last < pairs - 1))
    knots = np.unique(np.append(np.round(places), pairs - 1))
    shapes = np.stack([np.interp(np.arange(pairs), knots, row) for row in np.eye(len(knots))], axis=1)
    return shapes[:, 1:] if first >= 0 else shapes


def _candidate(space: SearchSpace, log_lambdas: Genes, n_hat: int, attention: Genes) -> Candidate:
    """The candidate of the space nearest to these values; n_hat is a place among its choices."""
    # Clipped before exp, which would overflow long after lambda_max.
    lambdas = np.exp(np.clip(log_lambdas, math.log(space.lambda_min), math.log(space.lambda_max)))
    factor = space.attention_factor
    if space.searches_attention:
        factor = space.nearest_attention(factor * math.exp(float(np.clip(attention[0] * ATTENTION_UNIT, -1, 1))))
    wanted = Candidate(tuple(lambdas.tolist()), space.n_hat_choices[n_hat], factor)
    return space.project(wanted)
