"""Outlook: what to expect of a candidate that was scored on some of the samples, from those scored on all of them.

Blocks of one text are alike, so that their scatter alone says too little of what other texts will add. How much too
little is seen in candidates of the past, whose end is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from longrope.search.evaluation import BlockScore

CHANCE = 0.05
"""Of dropping, at one look, a candidate that would be as good as the rival in the end, if it is as unlike the rival as
those of the past. There is a look after every sample but the last, so that more are dropped in all."""


class Outlook:
    """Of candidates that race against ``rival``.

    A candidate's lag after some samples is what it lost on them against the rival, in nats a token; its unlikeness is
    the mean size of what it lost or gained on each block of 256 tokens. What the samples that follow add to the lag is
    taken to be normal about 0, with a deviation in proportion to the unlikeness: candidates that differ from the rival
    in nothing that matters end where they were, and say nothing of those that differ. The proportion is that of the
    past. It is biased a little by those who were dropped, of whose end nobody knows. Nobody counts as more unlike than
    all of the past were, so that who is far behind everywhere can be seen to be lost. With one block a sample lag and
    unlikeness are the same but for the sign, and hardly anybody is.

    Args:
        past: candidates scored on all samples, one at least; without the rival, whose lag is 0 whatever happens.
        rival: its scores on all samples.
    """

    def __init__(self, past: Sequence[Sequence[BlockScore]], rival: Sequence[BlockScore]) -> None:
        self._past = past
        self._rival = rival
        self._tokens = [score.tokens for score in rival]
        self._learnt: dict[int, tuple[float, float, int]] = {}

    def expected(self, scores: Sequence[BlockScore]) -> float:
        """NLL in nats a token, over all samples, of a candidate with these on the first ones."""
        lag, _ = self._lag(scores)
        return sum(score.total for score in self._rival) / sum(self._tokens) + lag

    def is_lost(self, scores: Sequence[BlockScore]) -> bool:
        """Whether candidates that come out level with the rival are seldom as far behind as one with these scores."""
        from scipy.stats import t

        lag, unlikeness = self._lag(scores)
        count = len(scores)
        if count not in self._learnt:
            self._learnt[count] = self._learn(count)
        deviation, most, known = self._learnt[count]
        return known > 0 and bool(lag > t.ppf(1 - CHANCE, known) * deviation * min(unlikeness, most))

    def _lag(self, scores: Sequence[BlockScore]) -> tuple[float, float]:
        """Behind the rival, and unlike it."""
        lost = np.concatenate([np.subtract(a.nll, b.nll) for a, b in zip(scores, self._rival, strict=False)])
        tokens = sum(self._tokens[: len(scores)])
        return float(lost.sum()) / tokens, float(np.abs(lost).sum()) / tokens

    def _learn(self, count: int) -> tuple[float, float, int]:
        """Of what samples after the first ``count`` added to lags: the deviation a unit of unlikeness.

        And the largest unlikeness, and how many candidates say so: one that is the rival's like in everything does not.
        """
        squares, most = [], 0.0
        for scores in self._past:
            lag, unlikeness = self._lag(scores[:count])
            if unlikeness > 0:
                squares.append(((self._lag(scores)[0] - lag) / unlikeness) ** 2)
                most = max(most, unlikeness)
        return math.sqrt(math.fsum(squares) / max(len(squares), 1)), most, len(squares)
