"""From the settings of an algorithm to the algorithm."""

from __future__ import annotations

from collections.abc import Sequence

from longrope.search.algorithm import SearchAlgorithm
from longrope.search.candidate import Candidate
from longrope.search.coarse_to_fine import CoarseToFine, CoarseToFineSettings
from longrope.search.levels import Ramp
from longrope.search.optimiser import Optimiser
from longrope.search.paper import PaperSearch, PaperSettings
from longrope.search.space import SearchSpace

Sizes = PaperSettings | CoarseToFineSettings


def make_algorithm(
    name: str, space: SearchSpace, seeds: Sequence[Candidate], ramp: Ramp | None, sizes: Sizes, seed: int
) -> SearchAlgorithm:
    """The algorithm of that name, of which settings have checked that it is known.

    Raises:
        SettingsError: if the seeds do not fit the space.
    """
    if isinstance(sizes, PaperSettings):
        return PaperSearch(space, seeds, sizes, seed)
    return CoarseToFine(space, seeds, ramp, sizes, seed, _optimiser(name))


def _optimiser(name: str) -> type[Optimiser]:
    if name == "genetic":
        from longrope.search.evolution import GeneticOptimiser

        return GeneticOptimiser
    assert name == "cma", name
    from longrope.search.cma import CMAOptimiser

    return CMAOptimiser
