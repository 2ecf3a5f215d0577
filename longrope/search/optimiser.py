"""Optimiser: proposes genes of one level and learns from their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

from longrope.search.candidate import Candidate
from longrope.search.levels import Genes, Level


class Optimiser(ABC):
    """Minimises over the genes of a level, in rounds.

    Attributes:
        survivors: how many of the best so far it goes on from; a candidate that cannot come among them need not be
            scored in full.

    Args:
        level: whose genes are searched, from ``level.start`` and, where it tries single ones, ``level.others``.
        round_size: candidates of a round.
        seed: of its random numbers.
        start_score: of ``level.start``, where that is known.
    """

    survivors = 1

    def __init__(self, level: Level, round_size: int, seed: int, start_score: float | None = None) -> None:
        self.level = level
        self.round_size = round_size

    @abstractmethod
    def ask(self, known: Collection[Candidate]) -> list[Genes]:
        """The genes of the next round.

        Args:
            known: candidates that have been scored. An optimiser may propose them again, and then learns their scores
                once more; one that never does may return fewer than a round, or none where there is nothing new.
        """

    @abstractmethod
    def tell(self, genes: Sequence[Genes], scores: Sequence[float], dropped: Sequence[bool]) -> None:
        """Learn the scores of the genes just asked for; lower is better, and none is nan.

        An invalid candidate has an infinite score, and that of a candidate which was dropped early is an estimate.
        """
