"""Racing: candidates are scored sample by sample, and who has hardly a chance to matter is scored no further.

A candidate matters if it comes out ahead of a rival, the last of those that do. Decisions are taken after every sample,
when all that are still in the race have been scored on it, so they do not depend on who was faster. The samples come in
the order that told most of candidates before.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from longrope.data.samples import Sample
from longrope.model.score import perplexity
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.search.lead import block_scores
from longrope.search.outlook import Outlook
from longrope.search.scorer import SECONDS_DIGITS, Scorer, pooled
from longrope.workers.pool import Failure

RULE = 3
"""By which candidates are dropped. A run is gone on with by the rule it was begun with, or not at all."""
LEAST, MOST = 32, 48
"""Candidates scored in full that an outlook is learnt from: nobody is dropped before there are so many, and of more
the last ones count, which are most like those that come."""


@dataclass
class Race:
    """The races of one search.

    Attributes:
        samples: that candidates are scored on.
        scored: tokens scored for candidates so far.
        saved: tokens that would have been scored as well without dropping anyone.
        seconds: time in the model for those that were scored, in this process or before it was resumed.
    """

    samples: Sequence[Sample]
    scored: int = 0
    saved: int = 0
    seconds: float = 0.0
    _full: deque[Candidate] = field(default_factory=lambda: deque(maxlen=MOST), repr=False)

    def run(self, scorer: Scorer, candidates: Sequence[Candidate], rival: Candidate | None) -> Outcome:
        """Score ``candidates`` until each is scored in full or dropped.

        Args:
            rival: whom to beat, scored in full before; None to drop nobody.
        """
        left = list(candidates)
        results: dict[Candidate, list[BlockScore | Failure]] = {candidate: [] for candidate in candidates}
        outlook = self._outlook(scorer, rival)
        dropped: dict[Candidate, float] = {}
        ordered = [self.samples[place] for place in outlook.order] if outlook else self.samples
        # With nobody to drop all samples are one heat: workers wait for each other once.
        heat = 1 if outlook else len(ordered)
        for begin in range(0, len(ordered), heat):
            samples, rest = ordered[begin : begin + heat], ordered[begin + heat :]
            found = scorer.score(Task(candidate, sample.digest) for candidate in left for sample in samples)
            for candidate in left:
                results[candidate] += [found[Task(candidate, sample.digest)] for sample in samples]
            if outlook is None or not rest:
                continue
            for candidate in left:
                score = _score_if_lost(results[candidate], outlook)
                if score is not None:
                    dropped[candidate] = score
                    self._skip(scorer, rest)
            left = [candidate for candidate in left if candidate not in dropped]
        self._count(results, ordered)
        scores = {each: dropped[each] if each in dropped else pooled(results[each]) for each in candidates}
        self._full += [each for each in left if math.isfinite(scores[each])]
        return Outcome(scores, frozenset(dropped))

    def _outlook(self, scorer: Scorer, rival: Candidate | None) -> Outlook | None:
        if rival is None or len(self._full) < LEAST:
            return None
        past = [block_scores(scorer, each, self.samples) for each in self._full if each != rival]
        return Outlook(past, block_scores(scorer, rival, self.samples))

    def _skip(self, scorer: Scorer, samples: Sequence[Sample]) -> None:
        self.saved += sum(len(sample.tokens) for sample in samples)
        scorer.skip(len(samples))

    def _count(self, results: Mapping[Candidate, Sequence[BlockScore | Failure]], ordered: Sequence[Sample]) -> None:
        for found in results.values():
            self.scored += sum(len(sample.tokens) for sample, _ in zip(ordered, found, strict=False))
            # As the journal has them, so that a resumed search counts the same.
            times = [round(result.seconds, SECONDS_DIGITS) for result in found if isinstance(result, BlockScore)]
            self.seconds += math.fsum(times)


@dataclass(frozen=True)
class Outcome:
    """Scores of a round; those of the dropped are estimates."""

    scores: dict[Candidate, float]
    dropped: frozenset[Candidate]


def _score_if_lost(results: Sequence[BlockScore | Failure], outlook: Outlook) -> float | None:
    """What a candidate would score in the end, if it has hardly a chance; None while it may still come to matter."""
    own = [result for result in results if isinstance(result, BlockScore)]
    if len(own) < len(results):
        return math.inf  # whatever else it does, it has failed
    return perplexity(outlook.expected(own), 1) if outlook.is_lost(own) else None
