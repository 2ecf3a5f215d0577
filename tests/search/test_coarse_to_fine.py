"""Searches from coarse to fine: reproducible, exact in their counts, inside their space, and better than their seeds.

All on cheap objectives, with each of the optimisers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from longrope.exceptions import SettingsError
from longrope.rope.factors import RopeFactors
from longrope.search import coarse_to_fine
from longrope.search.algorithm import cut
from longrope.search.algorithms import make_algorithm
from longrope.search.candidate import Candidate
from longrope.search.coarse_to_fine import CoarseToFine, CoarseToFineSettings
from longrope.search.levels import Genes, Level, PairLevel, Ramp, RampLevel
from longrope.search.optimiser import Optimiser
from longrope.search.paper import PaperSearch, PaperSettings
from longrope.search.space import SearchSpace

PAIRS, SCALE, FACTOR = 16, 8.0, 1.1
NAMES = ("genetic", "cma")
SMALL = CoarseToFineSettings(population=6, max_evaluations=44, coarse=14)
Objective = Callable[[Candidate], float]

every = pytest.mark.parametrize("name", NAMES)


def space_of(pairs: int = PAIRS, n_hat: tuple[int, ...] = (0, 4, 8, 16), span: float = 1.25) -> SearchSpace:
    return SearchSpace(pairs, 1.0, 4 * SCALE, n_hat_choices=n_hat, attention_factor=FACTOR, attention_span=span)


def seeds_of(pairs: int = PAIRS) -> list[Candidate]:
    """PI and NTK."""
    ntk = tuple(SCALE ** (i / max(pairs - 1, 1)) for i in range(pairs))
    return [Candidate((SCALE,) * pairs, 0, FACTOR), Candidate(ntk, 0, FACTOR)]


def ramp_of(pairs: int = PAIRS) -> Ramp:
    return Ramp(RopeFactors.identity(100.0, 2 * pairs, 64), 64, SCALE)


def made(name: str, seed: int = 0, sizes: CoarseToFineSettings = SMALL, ramp: bool = True, **of: Any) -> CoarseToFine:
    space = space_of(**of)
    given = seeds_of(space.pairs)
    algorithm = make_algorithm(name, space, given, ramp_of(space.pairs) if ramp else None, sizes, seed)
    assert isinstance(algorithm, CoarseToFine)
    return algorithm


def distance(candidate: Candidate) -> float:
    """Least at a wavy profile from 1 to 12 that no ramp is, with n_hat 8 and an attention factor of 1.2."""
    at = np.linspace(0, 1, len(candidate.lambdas))
    wanted = np.cumsum(np.maximum(math.log(12) * (1 + np.sin(9 * at)) / len(at), 0))
    bend = float(np.mean((np.log(candidate.lambdas) - wanted) ** 2))
    n_hat = abs(math.log2(1 + candidate.n_hat) - math.log2(9))
    return math.exp(bend + 0.002 * n_hat + math.log(candidate.attention_factor / 1.2) ** 2)


def noise(candidate: Candidate) -> float:
    """An arbitrary score, one in four of them invalid, that is the same in every process."""
    number = int(candidate.key, 16)
    return math.inf if number % 4 == 0 else 1.0 + number % 1009


def run(
    algorithm: CoarseToFine, objective: Objective = distance, order: random.Random | None = None
) -> list[list[Candidate]]:
    """Drive ``algorithm`` to its end; the rounds asked."""
    rounds = []
    while candidates := algorithm.ask():
        rounds.append(candidates)
        told = list(candidates)
        if order is not None:
            order.shuffle(told)
        algorithm.tell({candidate: objective(candidate) for candidate in told})
    return rounds


def flat(rounds: list[list[Candidate]]) -> list[Candidate]:
    return [candidate for candidates in rounds for candidate in candidates]


@every
@pytest.mark.parametrize("objective", [distance, noise])
@pytest.mark.parametrize(
    ("ramp", "of"),
    [
        (True, {}),
        (False, {"span": 1.0}),  # a readjustment
        (True, {"pairs": 2, "n_hat": (0,)}),
        (True, {"pairs": 1}),
        (False, {"pairs": 2, "n_hat": (0, 8)}),
    ],
)
def test_every_search_stays_in_its_space_never_repeats_itself_and_ends_at_its_count(
    name: str, ramp: bool, of: dict[str, Any], objective: Objective
) -> None:
    algorithm = made(name, ramp=ramp, **of)
    asked = flat(run(algorithm, objective))
    seeds = [algorithm.space.quantise(seed) for seed in seeds_of(algorithm.space.pairs)]
    assert asked[: len(seeds)] == list(dict.fromkeys(seeds))
    assert len(set(asked)) == len(asked) == SMALL.max_evaluations
    assert all(algorithm.space.contains(candidate) for candidate in asked[len(seeds) :])
    assert algorithm.ask() == []
    fixed = not algorithm.space.searches_attention
    assert ({candidate.attention_factor for candidate in asked} == {FACTOR}) == fixed


@every
@pytest.mark.parametrize("limit", [1, 2, 3, 8, 9])
def test_max_evaluations_is_met_exactly_and_changes_nothing_before(name: str, limit: int) -> None:
    limited = run(made(name, sizes=CoarseToFineSettings(population=6, max_evaluations=limit)))
    unlimited = run(made(name, sizes=CoarseToFineSettings(population=6, max_evaluations=14)))
    assert flat(limited) == flat(unlimited)[:limit]


@every
def test_same_seed_same_search_whatever_the_order_of_the_scores(name: str) -> None:
    first, second = made(name, seed=7), made(name, seed=7)
    assert run(first, noise) == run(second, noise, order=random.Random(0))
    assert first.history == second.history
    other = made(name, seed=8)
    run(other, noise)
    assert [each.candidate for each in other.history[2:8]] != [each.candidate for each in first.history[2:8]]


@every
@pytest.mark.parametrize("seed", range(3))
def test_searches_find_factors_far_better_than_their_seeds(name: str, seed: int) -> None:
    sizes = CoarseToFineSettings(max_evaluations=120, coarse=40)
    algorithm = made(name, seed, sizes)
    run(algorithm)
    assert algorithm.best is not None
    candidate, score = algorithm.best
    assert score == distance(candidate)
    before = min(math.log(distance(each)) for each in algorithm.seeds)
    assert math.log(score) < 0.3 * before
    # Both levels have a part in it.
    reached = [min(each.score for each in algorithm.history[:count]) for count in (2, 40, 120)]
    assert sorted(set(reached), reverse=True) == reached


@every
def test_each_level_begins_when_the_share_of_the_one_before_is_spent(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the round in which it is; each begins at the best so far."""
    begun: list[tuple[int, Level]] = []
    algorithm = made(name)
    make = algorithm._make

    def noted(level: Level, round_size: int, seed: int, start_score: float | None) -> Optimiser:
        begun.append((len(algorithm.history), level))
        assert round_size == SMALL.population
        assert algorithm.best is not None
        best, score = algorithm.best
        assert start_score == (None if isinstance(level, RampLevel) else score)
        if isinstance(level, PairLevel):
            assert level.decode(level.start) == algorithm.space.project(best)
        return make(level, round_size, seed, start_score)

    monkeypatch.setattr(algorithm, "_make", noted)
    run(algorithm)
    (first, ramp), (second, pairs) = begun
    assert first == 2
    assert SMALL.coarse <= second < SMALL.coarse + SMALL.population
    attention = algorithm.space.searches_attention
    assert (type(ramp), ramp.size, ramp.choices) == (RampLevel, 4 + attention, 0)
    first_moved, last_moved = ramp_of().moved_pairs()
    assert 0 < first_moved < last_moved < PAIRS - 1
    assert (type(pairs), pairs.size, pairs.choices) == (PairLevel, last_moved - first_moved + 1 + attention + 1, 4)


def test_a_search_without_a_ramp_moves_all_pairs_at_once() -> None:
    algorithm = made("genetic", ramp=False)
    run(algorithm)
    early = algorithm.history[2 : SMALL.coarse]
    assert len({each.candidate.n_hat for each in early}) > 1  # a ramp has none to choose
    assert len({each.candidate.lambdas[0] for each in algorithm.history}) > 2, "the fastest pair has a gene"


@pytest.mark.parametrize(("lambdas", "known"), [((2.0, 4.0), True), ((2.0, 400.0), False), ((4.0, 2.0), False)])
def test_a_seed_outside_the_space_has_no_score_for_its_projection(lambdas: tuple[float, float], known: bool) -> None:
    """A level starts in the space; what the seed scored is said of it only where it is the same candidate."""
    told: list[float | None] = []

    class Noted(Optimiser):
        def __init__(self, level: Level, round_size: int, seed: int, start_score: float | None = None) -> None:
            super().__init__(level, round_size, seed, start_score)
            told.append(start_score)

        def ask(self, known: Any) -> list[Genes]:
            return [self.level.start]

        def tell(self, genes: Any, scores: Any, dropped: Any) -> None:
            pass

    seeds = [Candidate(lambdas, 0, 1.0818181)]  # a factor that is searched has four decimals
    space = SearchSpace(2, 1.0, 40.0, attention_factor=1.0818181, attention_span=1.25)
    algorithm = CoarseToFine(space, seeds, None, SMALL, 0, Noted)
    algorithm.tell({algorithm.ask()[0]: 3.0})
    algorithm.ask()
    assert told[0] == (3.0 if known else None)


# --- Invalid candidates ---


@every
def test_a_search_whose_children_are_all_invalid_goes_on_to_its_end(name: str) -> None:
    algorithm = made(name)
    run(algorithm, lambda candidate: 2.0 if candidate in algorithm.seeds else math.inf)
    assert len(algorithm.history) == SMALL.max_evaluations
    assert algorithm.best == (algorithm.seeds[0], 2.0)
    assert len(algorithm.ranked()) == 2


@every
def test_a_search_without_a_valid_seed_ends(name: str) -> None:
    algorithm = made(name)
    assert run(algorithm, lambda candidate: math.inf) == [algorithm.seeds]
    assert algorithm.best is None


@every
def test_invalid_candidates_do_not_keep_a_search_from_its_optimum(name: str) -> None:
    """A fifth of the candidates is invalid, by no rule that could be learned."""
    algorithm = made(name, sizes=CoarseToFineSettings(max_evaluations=100, coarse=40))
    run(algorithm, lambda candidate: math.inf if int(candidate.key, 16) % 5 == 0 else distance(candidate))
    assert any(each.score == math.inf for each in algorithm.history)
    assert algorithm.best is not None
    assert math.log(algorithm.best[1]) < 0.4 * min(math.log(distance(each)) for each in algorithm.seeds)


# --- Small spaces ---


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level is given up after few rounds without anything new, for the sake of time."""
    monkeypatch.setattr(coarse_to_fine, "TRIES", 3)


@every
@pytest.mark.usefixtures("impatient")
def test_a_search_of_a_space_with_few_candidates_ends_early(name: str) -> None:
    space = SearchSpace(2, 1.0, 1.02, n_hat_choices=(0,))  # 3 grid points, 6 candidates
    seed = Candidate((1.0, 1.0), 0, 1.0)
    algorithm = make_algorithm(name, space, [seed], ramp_of(2), SMALL, 0)
    assert isinstance(algorithm, CoarseToFine)
    asked = flat(run(algorithm, lambda candidate: 3 - sum(candidate.lambdas) / 2))
    assert len(asked) <= 6
    assert Candidate((1.02, 1.02), 0, 1.0) in asked


@every
@pytest.mark.usefixtures("impatient")
def test_a_level_that_has_nothing_new_gives_way_to_the_next(name: str) -> None:
    """The ramp of one pair at a ratio near 1 stays at a few lambdas, and has no n_hat; the last level has both."""
    space = SearchSpace(1, 1.0, 1.03, n_hat_choices=(0, 8))
    algorithm = make_algorithm(name, space, [Candidate((1.0,), 0, 1.0)], ramp_of(1), SMALL, 0)
    assert isinstance(algorithm, CoarseToFine)
    asked = flat(run(algorithm, lambda candidate: 3 - candidate.lambdas[0] - candidate.n_hat / 10))
    assert len(asked) < SMALL.coarse
    assert {candidate.n_hat for candidate in asked} == {0, 8}


# --- Racing ---


def test_dropped_candidates_are_never_best_ranked_or_rival() -> None:
    algorithm = made("cma")
    assert algorithm.rival is None
    seeds = algorithm.ask()
    algorithm.tell(dict(zip(seeds, (6.0, 5.0), strict=True)))
    assert algorithm.rival == seeds[1]
    round_ = algorithm.ask()
    scores = dict(zip(round_, (1.0, 7.0, 2.0, 8.0, math.inf, 9.0), strict=True))
    algorithm.tell(scores, {round_[0], round_[2]})
    assert algorithm.best == (seeds[1], 5.0)
    assert [each.score for each in algorithm.ranked()] == [5, 6, 7, 8, 9]
    assert algorithm.rival == round_[1], "the best of those of this level that were scored in full"
    assert [each.score for each in algorithm.history] == [6, 5, *scores.values()]
    assert [each.candidate for each in algorithm.history if each.dropped] == [round_[0], round_[2]]


def test_a_level_counts_the_candidate_that_it_began_with_among_the_survivors() -> None:
    """And no other of the level before, though they may be better than all that follow."""
    algorithm = made("genetic")
    while len(algorithm.history) < SMALL.coarse:
        algorithm.tell({candidate: distance(candidate) for candidate in algorithm.ask()})
    assert algorithm.best is not None
    start, _ = algorithm.best
    worse = {candidate: 50.0 + place for place, candidate in enumerate(algorithm.ask())}
    assert algorithm.rival is None, "the start alone is known of the level"
    algorithm.tell(worse)
    assert algorithm.rival == list(worse)[2], "the start and two of its children are ahead of it"
    assert algorithm.best[0] == start


def test_only_who_was_asked_for_can_be_dropped() -> None:
    algorithm = made("cma")
    scores = dict.fromkeys(algorithm.ask(), 1.0)
    with pytest.raises(AssertionError, match="not asked for"):
        algorithm.tell(scores, {Candidate((9.0,) * PAIRS, 0, FACTOR)})


def test_a_genetic_search_has_as_many_survivors_as_parents() -> None:
    """Who comes behind them changes nothing in what follows, whether it was scored in full or not."""
    algorithm, blind = made("genetic"), made("genetic")
    assert (algorithm.survivors, made("cma").survivors) == (4, 1)
    while asked := algorithm.ask():
        assert blind.ask() == asked
        scores = {candidate: distance(candidate) for candidate in asked}
        algorithm.tell(scores)
        rival = math.inf if algorithm.rival is None else distance(algorithm.rival)
        ahead = {candidate for candidate, score in scores.items() if score <= rival}
        blind.tell({each: score if each in ahead else 1e6 for each, score in scores.items()}, scores.keys() - ahead)
    assert sum(each.dropped for each in blind.history) > 10


def test_the_paper_has_as_many_survivors_as_parents() -> None:
    algorithm = PaperSearch(space_of(span=1.0), seeds_of(), PaperSettings(population=4, parents=3), 0)
    assert algorithm.survivors == 3


# --- Sizes ---


@pytest.mark.parametrize(
    ("rounds", "limit", "expected"),
    [
        ([3, 8, 8], None, [3, 8, 8]),
        ([3, 8, 8], 12, [3, 8, 1]),
        ([3, 8, 8], 11, [3, 8]),
        ([3, 8, 8], 2, [2]),
        ([], 5, []),
        ([4, 0, 4], None, [4, 4]),
    ],
)
def test_rounds_are_cut_at_a_limit(rounds: list[int], limit: int | None, expected: list[int]) -> None:
    assert cut(rounds, limit) == expected


@every
def test_the_rounds_that_are_foreseen_are_those_that_come(name: str) -> None:
    assert [len(each) for each in run(made(name))] == SMALL.rounds(2) == [2, *[6] * 7]
    assert SMALL.most == 44


@pytest.mark.parametrize("changed", [{"population": 1}, {"max_evaluations": 0}, {"coarse": -1}])
def test_unusable_sizes_of_a_coarse_to_fine_search_are_refused(changed: dict[str, int]) -> None:
    [(name, value)] = changed.items()
    with pytest.raises(SettingsError, match=f"^{name.replace('_', ' ')} is {value}; give at least {value + 1}$"):
        CoarseToFineSettings(**changed)


@every
def test_unusable_seeds_of_a_coarse_to_fine_search_are_refused(name: str) -> None:
    for seeds in ([], [Candidate((1.0, 2.0), 0, 1.0)]):
        with pytest.raises(SettingsError, match="to start from"):
            make_algorithm(name, space_of(), seeds, ramp_of(), SMALL, 0)
