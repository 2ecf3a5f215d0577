"""SearchAlgorithm: the ask/tell interface of every search, independent of models, workers and files."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from longrope.exceptions import SettingsError
from longrope.search.candidate import Candidate
from longrope.search.space import SearchSpace


class Scored(NamedTuple):
    """A candidate that was told, with the round it was asked in and its objective.

    ``dropped``: the score is an estimate, made when it was seen that the candidate is none of the best.
    """

    round: int
    candidate: Candidate
    score: float
    dropped: bool = False


class SearchAlgorithm(ABC):
    """Proposes candidates in rounds and learns from their scores.

    ``while candidates := algorithm.ask(): algorithm.tell({c: objective(c) for c in candidates})``

    A round is a barrier: what comes next depends only on the seed and the scores told, never on the order in which
    they arrived, so the same seed gives the same search with any number of workers, and a search is resumed by
    running it again and answering from a journal. No candidate is asked for twice.

    Attributes:
        round: number of the current round, from 0; ``tell`` moves on to the next.
        history: everything told, in the order asked.
        survivors: how many of the best so far matter to what comes next; who cannot come among them need not be
            scored in full.
    """

    def __init__(self) -> None:
        self.round = 0
        self.history: list[Scored] = []
        self.survivors = 1
        self._asked: list[Candidate] = []
        self._seen: set[Candidate] = set()
        self._finished = False

    def ask(self) -> list[Candidate]:
        """The candidates of the next round, all different and never asked before; [] when the search is finished."""
        assert not self._asked, "tell the scores of the last round first"
        candidates = [] if self._finished else self._propose()
        self._finished = not candidates
        self._seen.update(candidates)
        assert len(self._seen) == len(self.history) + len(candidates), "a candidate was proposed twice"
        self._asked = candidates
        return list(candidates)

    def tell(self, scores: Mapping[Candidate, float], dropped: Collection[Candidate] = ()) -> None:
        """Give the objective of every candidate just asked for, in any order.

        Args:
            scores: lower is better; ``math.inf`` marks an invalid candidate, which is never selected.
            dropped: those whose scores are estimates, because they were not scored in full; never selected either.
        """
        assert scores.keys() == set(self._asked), "tell exactly the candidates that were asked for"
        assert all(score > -math.inf for score in scores.values()), "a score is nan or -inf"
        assert scores.keys() >= set(dropped), "who was dropped was not asked for"
        if self._asked:
            self.history += [
                Scored(self.round, candidate, float(scores[candidate]), candidate in dropped)
                for candidate in self._asked
            ]
            self._asked = []
            self.round += 1

    @property
    def best(self) -> tuple[Candidate, float] | None:
        """The best candidate told and its score, the earlier of equals; None if none was valid."""
        return self.best_with(lambda candidate: True)

    def best_with(self, predicate: Callable[[Candidate], bool]) -> tuple[Candidate, float] | None:
        """The best valid candidate told for which ``predicate`` holds, for example ``lambda c: c.n_hat == 0``."""
        ranked = (scored for scored in self.ranked() if predicate(scored.candidate))
        return next(((scored.candidate, scored.score) for scored in ranked), None)

    def ranked(self) -> list[Scored]:
        """The valid candidates scored in full, best first; equal scores in the order asked."""
        valid = (scored for scored in self.history if scored.score < math.inf and not scored.dropped)
        return sorted(valid, key=lambda scored: scored.score)

    @property
    def rival(self) -> Candidate | None:
        """The last of the survivors, whom a candidate must beat to matter; None while they are fewer."""
        ranked = [scored for scored in self.ranked() if self._counts(scored)]
        return ranked[self.survivors - 1].candidate if len(ranked) >= self.survivors else None

    def _counts(self, scored: Scored) -> bool:
        """Whether it may be a survivor."""
        return True

    @abstractmethod
    def _propose(self) -> list[Candidate]:
        """The next round: different candidates, none of them in ``self._seen``; [] when finished."""


def cut(rounds: Sequence[int], limit: int | None) -> list[int]:
    """Sizes of rounds that together stay within ``limit``, empty ones left out."""
    left, found = math.inf if limit is None else limit, []
    for size in rounds:
        found.append(int(min(size, left)))
        left -= found[-1]
    return [size for size in found if size]


def quantised_seeds(space: SearchSpace, seeds: Sequence[Candidate]) -> list[Candidate]:
    """Different candidates to start from, on the grid of the space, inside its bounds or not.

    Raises:
        SettingsError: if there are none, or one has another number of lambdas than the space.
    """
    if not seeds:
        raise SettingsError("a search needs at least one candidate to start from")
    for candidate in seeds:
        if len(candidate.lambdas) != space.pairs:
            raise SettingsError(
                f"a candidate to start from has {len(candidate.lambdas)} lambdas; the model has {space.pairs}"
            )
    return list(dict.fromkeys(space.quantise(candidate) for candidate in seeds))
