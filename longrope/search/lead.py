"""How far one candidate is ahead of another on texts that both were scored on, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longrope.data.samples import Sample
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.search.scorer import Scorer

Blocks = npt.NDArray[np.float64]


def standard_error(differences: Sequence[Blocks]) -> float:
    """Of the mean of paired differences whose neighbours are correlated within a sample.

    The long-run variance by Newey and West (1987), with the triangular weights that keep it above 0 and a lag that
    grows with the square root of the sample's blocks; nothing is taken to be correlated over the end of a sample. What
    the mean, which is taken from the same blocks, takes away from it is made good as for uncorrelated blocks.
    """
    count = sum(len(each) for each in differences)
    mean = math.fsum(math.fsum(each) for each in differences) / count
    total, weights = 0.0, float(count)
    for each in differences:
        centred = each - mean
        total += float(centred @ centred)
        lags = math.isqrt(len(each))
        for lag in range(1, min(lags, len(each) - 1) + 1):
            weight = 1 - lag / (lags + 1)
            total += 2 * weight * float(centred[lag:] @ centred[:-lag])
            weights += 2 * weight * (len(each) - lag)
    return math.sqrt(max(total, 0.0) / (count - weights / count) / count)


def block_scores(scorer: Scorer, candidate: Candidate, samples: Sequence[Sample]) -> list[BlockScore]:
    """What a candidate scored on samples that it was scored on before."""
    found = [scorer.known(Task(candidate, sample.digest)) for sample in samples]
    scores = [result for result in found if isinstance(result, BlockScore)]
    assert len(scores) == len(samples), "not scored in full, or not without failure"
    return scores


@dataclass(frozen=True)
class Lead:
    """How much lower a candidate's NLL is than another's, in nats a block, and the standard error.

    That of one block is infinite, since nobody knows it.
    """

    mean: float
    standard_error: float
    blocks: int


def lead(of: Sequence[BlockScore], over: Sequence[BlockScore]) -> Lead:
    """From the paired differences on samples that both were scored on, in one order."""
    differences = [np.subtract(b.nll, a.nll) for a, b in zip(of, over, strict=True)]
    blocks = sum(map(len, differences))
    mean = math.fsum(math.fsum(each) for each in differences) / blocks
    return Lead(mean, standard_error(differences) if blocks > 1 else math.inf, blocks)
