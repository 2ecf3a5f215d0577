"""Outlook: what to expect of a candidate that was scored on some of the samples, from those scored on all of them.

Blocks of one text are alike, so that their scatter alone says too little of what other texts will add. How much too
little is seen in candidates of the past, whose end is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from longrope.search.evaluation import BlockScore

CHANCE = 0.01
"""Of dropping, at one look, a candidate that would be as good as the rival in the end, if it is as unlike the rival as
those of the past. There is a look after every sample but the last, so that more are dropped in all. A search lives on
the few that beat the rival: of those that 0.05 drops some are the best so far."""


class Outlook:
    """Of candidates that race against ``rival``.

    A candidate's lag after some samples is what it lost on them against the rival, in nats a token; its unlikeness is
    the mean size of what it lost or gained on each block of 256 tokens. What the samples that follow add to the lag is
    taken to be normal about 0, with a deviation in proportion to the unlikeness: candidates that differ from the rival
    in nothing that matters end where they were, and say nothing of those that differ. The proportion is that of the
    past. It is a little too small, since the end of those who were dropped is not known, and since the order of the
    samples is that which makes it small. Nobody counts as more unlike than
    all of the past were, so that who is far behind everywhere can be seen to be lost. With one block a sample lag and
    unlikeness are the same but for the sign, and hardly anybody is.

    Attributes:
        order: of the samples, by their places: each time the one after which the proportion is smallest, so that
            whoever is lost is seen to be soon. Samples are taken to be of one length.

    Args:
        past: candidates scored on all samples, one at least; without the rival, whose lag is 0 whatever happens.
        rival: its scores on all samples.
    """

    def __init__(self, past: Sequence[Sequence[BlockScore]], rival: Sequence[BlockScore]) -> None:
        self._rival = rival
        self._tokens = np.array([score.tokens for score in rival], dtype=np.float64)
        differences = [[np.subtract(a.nll, b.nll) for a, b in zip(each, rival, strict=True)] for each in past]
        self._lost = np.array([[blocks.sum() for blocks in each] for each in differences])
        self._size = np.array([[np.abs(blocks).sum() for blocks in each] for each in differences])
        self.order = self._most_telling_first()
        self._learnt = [self._learn(self.order[:count]) for count in range(1, len(rival))]

    def expected(self, scores: Sequence[BlockScore]) -> float:
        """NLL in nats a token, over all samples, of a candidate with these on the first ones in ``order``."""
        lag, _ = self._lag(scores)
        return sum(score.total for score in self._rival) / float(self._tokens.sum()) + lag

    def is_lost(self, scores: Sequence[BlockScore]) -> bool:
        """Whether candidates that come out level with the rival are seldom as far behind as one with these scores.

        They are of some samples, the first in ``order``, but not of all.
        """
        from scipy.stats import t

        lag, unlikeness = self._lag(scores)
        deviation, most, known = self._learnt[len(scores) - 1]
        return known > 0 and bool(lag > t.ppf(1 - CHANCE, known) * deviation * min(unlikeness, most))

    def _lag(self, scores: Sequence[BlockScore]) -> tuple[float, float]:
        """Behind the rival, and unlike it."""
        first = self.order[: len(scores)]
        lost = np.concatenate(
            [np.subtract(a.nll, self._rival[place].nll) for a, place in zip(scores, first, strict=True)]
        )
        tokens = float(self._tokens[first].sum())
        return float(lost.sum()) / tokens, float(np.abs(lost).sum()) / tokens

    def _learn(self, first: list[int]) -> tuple[float, float, int]:
        """Of what the samples after the ``first`` added to lags: the deviation a unit of unlikeness.

        And the largest unlikeness, and how many candidates say so: one that was the rival's like so far does not.
        """
        tokens = self._tokens[first].sum()
        unlikeness = self._size[:, first].sum(axis=1) / tokens
        added = self._lost.sum(axis=1) / self._tokens.sum() - self._lost[:, first].sum(axis=1) / tokens
        known = unlikeness > 0
        if not known.any():
            return 0.0, 0.0, 0
        squares = (added[known] / unlikeness[known]) ** 2
        return math.sqrt(math.fsum(squares) / len(squares)), float(unlikeness.max()), len(squares)

    def _most_telling_first(self) -> list[int]:
        order: list[int] = []
        left = list(range(len(self._tokens)))

        def rank(place: int) -> tuple[int, float]:
            """Of candidates that are the rival's like on a sample it says nothing, so that many must differ first."""
            deviation, _, known = self._learn([*order, place])
            return -known, deviation

        while left:
            order.append(min(left, key=rank))
            left.remove(order[-1])
        return order
