"""Racing: candidates are scored sample by sample, and who is seen to be too far behind is scored no further.

A candidate is compared with a rival, the last of those that matter, on the blocks that both were scored on. It is
dropped when the mean of the paired differences is above 0 by more than chance allows (Student's t). Decisions are taken
after every sample, when all that are still in the race have been scored on it, so they do not depend on who was faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longrope.data.samples import Sample
from longrope.model.score import perplexity
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.search.scorer import SECONDS_DIGITS, Scorer, pooled
from longrope.workers.pool import Failure

Blocks = npt.NDArray[np.float64]

CHANCE = 0.1
"""Of dropping, at one look, a candidate that would be as good as its rival on endlessly many blocks. There is a look
after every sample but the last, so that more are dropped in all."""

LEAST_ERROR = 1e-6
"""Of an estimate, in nats a token: blocks may all differ by the same."""


@dataclass
class Race:
    """The races of one search.

    Attributes:
        samples: in the order in which they are scored.
        scored: tokens scored for candidates so far.
        saved: tokens that would have been scored as well without dropping anyone.
        seconds: time in the model for those that were scored, in this process or before it was resumed.
    """

    samples: Sequence[Sample]
    scored: int = 0
    saved: int = 0
    seconds: float = 0.0

    def run(self, scorer: Scorer, candidates: Sequence[Candidate], rival: Candidate | None) -> Outcome:
        """Score ``candidates`` until each is scored in full or dropped.

        Args:
            rival: whom to beat, scored in full before; None to drop nobody.
        """
        left = list(candidates)
        results: dict[Candidate, list[BlockScore | Failure]] = {candidate: [] for candidate in candidates}
        against = block_scores(scorer, rival, self.samples) if rival is not None else None
        estimates: dict[Candidate, Estimate] = {}
        # With nobody to drop all samples are one heat: workers wait for each other once.
        heat = len(self.samples) if against is None else 1
        for begin in range(0, len(self.samples), heat):
            samples, rest = self.samples[begin : begin + heat], self.samples[begin + heat :]
            found = scorer.score(Task(candidate, sample.digest) for candidate in left for sample in samples)
            for candidate in left:
                results[candidate] += [found[Task(candidate, sample.digest)] for sample in samples]
            if against is None or not rest:
                continue
            for candidate in left:
                estimate = _estimate_if_behind(results[candidate], against)
                if estimate is not None:
                    estimates[candidate] = estimate
                    self._skip(scorer, rest)
            left = [candidate for candidate in left if candidate not in estimates]
        self._count(results)
        scores = {each: estimates[each].score if each in estimates else pooled(results[each]) for each in candidates}
        return Outcome(scores, {candidate: estimate.error for candidate, estimate in estimates.items()})

    def _skip(self, scorer: Scorer, samples: Sequence[Sample]) -> None:
        self.saved += sum(len(sample.tokens) for sample in samples)
        scorer.skip(len(samples))

    def _count(self, results: Mapping[Candidate, Sequence[BlockScore | Failure]]) -> None:
        for found in results.values():
            self.scored += sum(len(sample.tokens) for sample, _ in zip(self.samples, found, strict=False))
            # As the journal has them, so that a resumed search counts the same.
            times = [round(result.seconds, SECONDS_DIGITS) for result in found if isinstance(result, BlockScore)]
            self.seconds += math.fsum(times)


@dataclass(frozen=True)
class Outcome:
    """Scores of a round; those of the dropped are estimates, and have errors: the standard errors of their logs."""

    scores: dict[Candidate, float]
    errors: dict[Candidate, float]


@dataclass(frozen=True)
class Estimate:
    """What a candidate would score in the end, and the standard error of its log."""

    score: float
    error: float


def standard_error(differences: Sequence[Blocks]) -> tuple[float, float]:
    """Of the mean of paired differences whose neighbours are correlated within a sample; and its degrees of freedom.

    The long-run variance by Newey and West (1987), with the triangular weights that keep it above 0 and a lag that
    grows with the square root of the sample's blocks; nothing is taken to be correlated over the end of a sample. What
    the mean, which is taken from the same blocks, takes away from it is made good as for uncorrelated blocks. Degrees
    of freedom are those of a spectral estimate with these weights (Priestley 1981, 6.2.3), less one for the mean.
    """
    count = sum(len(each) for each in differences)
    mean = math.fsum(math.fsum(each) for each in differences) / count
    total, weights, squares = 0.0, float(count), float(count)
    for each in differences:
        centred = each - mean
        total += float(centred @ centred)
        lags = math.isqrt(len(each))
        for lag in range(1, min(lags, len(each) - 1) + 1):
            weight = 1 - lag / (lags + 1)
            total += 2 * weight * float(centred[lag:] @ centred[:-lag])
            weights += 2 * weight * (len(each) - lag)
            squares += 2 * weight**2 * (len(each) - lag)
    return math.sqrt(max(total, 0.0) / (count - weights / count) / count), max(count**2 / squares - 1, 1.0)


def block_scores(scorer: Scorer, candidate: Candidate, samples: Sequence[Sample]) -> list[BlockScore]:
    """What a candidate scored on samples that it was scored on before."""
    found = [scorer.known(Task(candidate, sample.digest)) for sample in samples]
    scores = [result for result in found if isinstance(result, BlockScore)]
    assert len(scores) == len(samples), "not scored in full, or not without failure"
    return scores


@dataclass(frozen=True)
class Lead:
    """How much lower a candidate's NLL is than another's, in nats a block, and the standard error.

    Attributes:
        freedom: degrees of freedom of the standard error; 0 of one block, whose error nobody knows.
    """

    mean: float
    standard_error: float
    freedom: float
    blocks: int


def lead(of: Sequence[BlockScore], over: Sequence[BlockScore]) -> Lead:
    """From the paired differences on the samples, the first ones of both, that both were scored on."""
    differences = [np.subtract(b.nll, a.nll) for a, b in zip(of, over, strict=False)]
    blocks = sum(map(len, differences))
    mean = math.fsum(math.fsum(each) for each in differences) / blocks
    return Lead(mean, *(standard_error(differences) if blocks > 1 else (math.inf, 0.0)), blocks)


def doubt(freedom: float) -> float:
    """Standard errors that a candidate must be behind to be dropped: 1.28 after many blocks, more after few."""
    from scipy.stats import t

    return float(t.ppf(1 - CHANCE, freedom))


def _estimate_if_behind(results: Sequence[BlockScore | Failure], rival: Sequence[BlockScore]) -> Estimate | None:
    """What a candidate would score in the end, if it is too far behind; None while it may still come to matter.

    The estimate adds what it lost so far, for every token, to what the rival loses on all samples. Its error is that of
    the mean of a sample drawn from a finite population, of which a part is known.
    """
    own = [result for result in results if isinstance(result, BlockScore)]
    if len(own) < len(results):
        return Estimate(math.inf, math.inf)  # whatever else it does, it has failed
    found = lead(rival, own)
    if found.blocks < 2 or found.mean <= doubt(found.freedom) * found.standard_error:
        return None
    known, tokens = sum(each.tokens for each in own), sum(each.tokens for each in rival)
    lost, error = (found.blocks / known * each for each in (found.mean, found.standard_error))
    score = perplexity(math.fsum(each.total for each in rival) + lost * tokens, tokens)
    return Estimate(score, max(error * math.sqrt(1 - known / tokens), LEAST_ERROR))
