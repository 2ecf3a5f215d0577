"""Evaluations: a candidate on a sample, and the score that comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from longrope.search.candidate import Candidate


@dataclass(frozen=True)
class Task:
    """One evaluation to do: a candidate on a sample.

    Attributes:
        candidate: the factors to score.
        sample: digest of the sample to score them on.
    """

    candidate: Candidate
    sample: str

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"candidate {self.candidate.key}, sample {self.sample[:8]}"


@dataclass(frozen=True)
class Batch:
    """Several evaluations to do in one forward pass.

    Its result is a tuple with a BlockScore or Failure for each row.

    Attributes:
        candidates: one a row. A candidate that comes again only fills the batch up.
        sample: digest of the sample to score them on.
    """

    candidates: tuple[Candidate, ...]
    sample: str

    @property
    def label(self) -> str:
        """What it is called in messages."""
        count = len(set(self.candidates))
        return f"{count} candidate(s) from {self.candidates[0].key} on, sample {self.sample[:8]}"


@dataclass(frozen=True)
class BlockScore:
    """The result of one evaluation.

    Attributes:
        nll: sums of the negative log-likelihood in nats, one per block of 256 predicted tokens.
        tokens: predicted tokens in all blocks.
        seconds: time spent in the model; of a batch, its time divided by the candidates in it, fillers not counted.
    """

    nll: tuple[float, ...]
    tokens: int
    seconds: float

    @property
    def total(self) -> float:
        """NLL of the whole sample in nats."""
        return math.fsum(self.nll)
