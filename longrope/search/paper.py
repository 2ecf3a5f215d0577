"""PaperSearch: the evolutionary search of LongRoPE (arXiv 2402.13753, section 3.3 and algorithm 1)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple, TypeVar

from longrope.exceptions import SettingsError
from longrope.search.algorithm import SearchAlgorithm, cut, quantised_seeds
from longrope.search.candidate import Candidate
from longrope.search.space import SearchSpace

HALVED_ABOVE = 512 * 1024
TRIES_PER_CHILD = 100

T = TypeVar("T")


@dataclass(frozen=True)
class PaperSettings:
    """Sizes of the genetic search; the defaults are the paper's (arXiv 2402.13753, appendix A.1).

    Attributes:
        population: candidates of round 0, seeds included.
        mutations: children by mutation in each later round.
        crossovers: children by crossover in each later round.
        mutation_probability: of each gene of a mutated child to be drawn anew.
        iterations: rounds after round 0.
        parents: how many of the best candidates so far have children.
        max_evaluations: the search ends when it has asked for this many candidates; None for no such limit.

    Raises:
        SettingsError: if a size cannot be used.
    """

    population: int = 64
    mutations: int = 16
    crossovers: int = 16
    mutation_probability: float = 0.3
    iterations: int = 40
    parents: int = 32
    max_evaluations: int | None = None

    def __post_init__(self) -> None:
        least = {"population": 1, "mutations": 0, "crossovers": 0, "iterations": 0, "parents": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise SettingsError(f"{name} is {getattr(self, name)}; give at least {minimum}")
        if not 0 < self.mutation_probability <= 1:
            raise SettingsError(f"mutation probability is {self.mutation_probability}; give a number in (0, 1]")
        if self.crossovers and self.parents < 2:
            raise SettingsError("crossover needs two parents; give at least 2 parents, or 0 crossovers")
        if self.iterations and not self.mutations + self.crossovers:
            raise SettingsError("rounds without mutations and crossovers are empty; give either, or 0 iterations")
        if self.max_evaluations is not None and self.max_evaluations < 1:
            raise SettingsError(f"max evaluations is {self.max_evaluations}; give at least 1")

    @property
    def round_size(self) -> int:
        """Candidates of a usual round."""
        return self.mutations + self.crossovers or self.population

    @property
    def most(self) -> int:
        """Candidates that are asked for at most."""
        total = self.population + self.iterations * (self.mutations + self.crossovers)
        return total if self.max_evaluations is None else min(total, self.max_evaluations)

    def rounds(self, seeds: int) -> list[int]:
        """Candidates of each round, from so many seeds, if unseen children are found for all of them."""
        later = [self.mutations + self.crossovers] * self.iterations
        return cut([max(self.population, seeds), *later], self.max_evaluations)

    @classmethod
    def paper(cls, target_length: int) -> PaperSettings:
        """The paper's sizes: population, mutations and crossovers are halved for targets above 512k tokens."""
        return cls(population=32, mutations=8, crossovers=8) if target_length > HALVED_ABOVE else cls()


class Genes(NamedTuple):
    """A candidate of the space as integers: rising grid indices of its lambdas, and n_hat in tokens."""

    indices: tuple[int, ...]
    n_hat: int


class PaperSearch(SearchAlgorithm):
    """Round 0 is the seeds and mutations of them; each later round is children of the best candidates so far.

    Every child is in the space. Seeds are scored as they are (quantised only), inside the space or not, and have
    children from their projection into it. A round is smaller than its size when no unseen child can be found, and
    the search ends early when a round would be empty.

    Args:
        seeds: candidates to start from (PI, NTK, YaRN, ...), in order of importance. All of them are asked for,
            even if they are more than the population; only ``max_evaluations`` cuts them.
        seed: of the random numbers, which come from ``random.Random(seed).random()`` alone because that sequence
            is the same in every Python version.

    Raises:
        SettingsError: if there are no seeds, or one has another number of lambdas than the space.
    """

    def __init__(self, space: SearchSpace, seeds: Sequence[Candidate], settings: PaperSettings, seed: int) -> None:
        super().__init__()
        self.space = space
        self.seeds = quantised_seeds(space, seeds)
        self.settings = settings
        self.survivors = settings.parents
        self._random = random.Random(seed)

    def _propose(self) -> list[Candidate]:
        if self.round > self.settings.iterations:
            return []
        candidates = self._later_round() if self.round else self._first_round()
        limit = self.settings.max_evaluations
        return candidates if limit is None else candidates[: limit - len(self.history)]

    def _first_round(self) -> list[Candidate]:
        candidates = list(self.seeds)
        parents = [self._genes(candidate) for candidate in self.seeds]
        missing = max(0, self.settings.population - len(candidates))
        self._add_children(candidates, missing, lambda: self._mutate(self._choose(parents)))
        return candidates

    def _later_round(self) -> list[Candidate]:
        ranked = self.ranked()[: self.settings.parents]
        parents = list(dict.fromkeys(self._genes(scored.candidate) for scored in ranked))
        candidates: list[Candidate] = []
        if parents:
            mutations = self.settings.mutations
            self._add_children(candidates, mutations, lambda: self._mutate(self._choose(parents)))
        if len(parents) >= 2:
            crossovers = self.settings.crossovers
            self._add_children(candidates, crossovers, lambda: self._cross(*self._choose_two(parents)))
        return candidates

    def _add_children(self, candidates: list[Candidate], count: int, breed: Callable[[], Genes]) -> None:
        """Add up to ``count`` unseen children to ``candidates``."""
        taken = self._seen.union(candidates)
        for _ in range(count):
            for _ in range(TRIES_PER_CHILD):
                child = self.space.at(*breed())
                if child not in taken:
                    taken.add(child)
                    candidates.append(child)
                    break

    def _mutate(self, parent: Genes) -> Genes:
        """Draw each gene anew with the mutation probability.

        A run of redrawn lambdas lies between the kept ones beside it (the bounds, at the ends): independent draws
        from that interval, sorted, are a random monotone choice given the genes that are kept.
        """
        indices = list(parent.indices)
        redrawn = [self._happens() for _ in indices]
        for again, run in groupby(range(len(indices)), key=redrawn.__getitem__):
            if again:
                places = list(run)
                low = parent.indices[places[0] - 1] if places[0] > 0 else 0
                high = parent.indices[places[-1] + 1] if places[-1] + 1 < len(indices) else self.space.last
                drawn = sorted(low + self._below(high - low + 1) for _ in places)
                indices[places[0] : places[-1] + 1] = drawn
        n_hat = self._choose(self.space.n_hat_choices) if self._happens() else parent.n_hat
        return Genes(tuple(indices), n_hat)

    def _cross(self, first: Genes, second: Genes) -> Genes:
        """Take each gene from either parent with probability 1/2, given that the child is monotone.

        Redrawing until a child is monotone would hardly ever end for parents with many lambdas, so the choice is
        drawn from that same distribution directly: gene by gene, in proportion to how many monotone completions
        either parent's gene leaves.
        """
        genes = list(zip(first.indices, second.indices, strict=True))
        # completions[i][s]: ways to choose the genes after i when gene i is from parent s. Each parent is monotone
        # itself, so there is always one.
        completions = [[1, 1]]
        for pair, before in pairwise(reversed(genes)):
            after = list(zip(pair, completions[-1], strict=True))
            completions.append([sum(ways for value, ways in after if gene <= value) for gene in before])
        completions.reverse()
        indices: list[int] = []
        for pair, ways in zip(genes, completions, strict=True):
            weights = [ways[s] if not indices or indices[-1] <= pair[s] else 0 for s in (0, 1)]
            # Integers throughout: the counts reach 2**pairs, where floats would round.
            from_second = self._below(2**53) * sum(weights) >= weights[0] * 2**53
            indices.append(pair[from_second])
        return Genes(tuple(indices), self._choose((first.n_hat, second.n_hat)))

    def _genes(self, candidate: Candidate) -> Genes:
        return Genes(self.space.indices(candidate), self.space.nearest_n_hat(candidate))

    def _happens(self) -> bool:
        return self._random.random() < self.settings.mutation_probability

    def _below(self, count: int) -> int:
        return int(self._random.random() * count)

    def _choose(self, values: Sequence[T]) -> T:
        return values[self._below(len(values))]

    def _choose_two(self, parents: Sequence[T]) -> tuple[T, T]:
        i = self._below(len(parents))
        j = self._below(len(parents) - 1)
        return parents[i], parents[j if j < i else j + 1]
