"""Optimiser: proposes genes of one level and learns from their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from longrope.search.levels import Genes, Level


class Optimiser(ABC):
    """Minimises over the genes of a level, in rounds.

    Args:
        level: whose genes are searched, from ``level.start``.
        round_size: candidates of a round.
        seed: of its random numbers.
        start_score: of ``level.start``, where that is known.
    """

    def __init__(self, level: Level, round_size: int, seed: int, start_score: float | None = None) -> None:
        self.level = level
        self.round_size = round_size

    @abstractmethod
    def ask(self) -> list[Genes]:
        """The genes of the next round, ``round_size`` vectors."""

    @abstractmethod
    def tell(self, genes: Sequence[Genes], scores: Sequence[float], errors: Sequence[float]) -> None:
        """Learn the scores of the genes just asked for; lower is better, and none is nan.

        An invalid candidate has an infinite score. That of a candidate which was dropped early is an estimate; its
        error is the standard error of the log, and that of the others 0.
        """
