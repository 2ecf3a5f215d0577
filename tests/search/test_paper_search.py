"""The genetic search: reproducible, exact in its counts, inside its space, and better than its seeds."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.exceptions import SettingsError
from longrope.search.candidate import Candidate
from longrope.search.paper import Genes, PaperSearch, PaperSettings
from longrope.search.space import SearchSpace

SCALE = 8.0
PAIRS = 16
SPACE = SearchSpace(PAIRS, 1.0, 1.25 * SCALE)


def pi():
    return Candidate((SCALE,) * PAIRS, 0, 1.0)


def ntk():
    return Candidate(tuple(SCALE ** (i / (PAIRS - 1)) for i in range(PAIRS)), 0, 1.0)


def distance_to_a_step(candidate):
    """Least at a smooth step between 1 and 8 that neither PI nor NTK is close to, with n_hat 8."""
    wanted = [1 + 7 / (1 + math.exp(-(i - 9))) for i in range(PAIRS)]
    bend = sum((math.log(a) - math.log(b)) ** 2 for a, b in zip(candidate.lambdas, wanted, strict=True))
    return bend + 0.1 * abs(math.log2(1 + candidate.n_hat) - math.log2(9))


def run(search, objective, order=None):
    """Drive ``search`` to its end; the rounds asked."""
    rounds = []
    while candidates := search.ask():
        rounds.append(candidates)
        told = list(candidates)
        if order is not None:
            order.shuffle(told)
        search.tell({candidate: objective(candidate) for candidate in told})
    return rounds


def flat(rounds):
    return [candidate for candidates in rounds for candidate in candidates]


def noise(candidate):
    """An arbitrary score, one in four of them invalid, that is the same in every process."""
    number = int(candidate.key, 16)
    return math.inf if number % 4 == 0 else float(number % 1009)


SMALL = PaperSettings(population=12, mutations=5, crossovers=5, iterations=6, parents=6)


@st.composite
def searches(draw):
    pairs = draw(st.integers(1, 10))
    space = SearchSpace(
        pairs,
        draw(st.sampled_from([1.0, 0.5, 2.25])),
        draw(st.sampled_from([2.25, 2.26, 3.0, 40.0])),
        draw(st.sampled_from([0.01, 0.25, 1.0])),
        tuple(draw(st.lists(st.sampled_from([0, 1, 4, 256]), min_size=1, max_size=3))),
        draw(st.sampled_from([1.0, 1.2])),
    )
    anything = st.builds(
        Candidate,
        st.lists(st.floats(0.01, 60.0), min_size=pairs, max_size=pairs).map(tuple),
        st.integers(0, 300),
        st.sampled_from([1.0, 1.2]),
    )
    seeds = draw(st.lists(anything, min_size=1, max_size=5))
    sizes = PaperSettings(
        population=draw(st.integers(1, 12)),
        mutations=draw(st.integers(1, 5)),
        crossovers=draw(st.integers(0, 5)),
        mutation_probability=draw(st.sampled_from([0.01, 0.3, 1.0])),
        iterations=draw(st.integers(0, 4)),
        parents=draw(st.integers(2, 8)),
        max_evaluations=draw(st.sampled_from([None, 1, 7, 20])),
    )
    return PaperSearch(space, seeds, sizes, draw(st.integers(0, 9)))


@settings(deadline=None, max_examples=60)
@given(searches(), st.integers(0, 3))
def test_every_search_stays_in_its_space_and_never_repeats_itself(search, salt):
    rounds = run(search, lambda candidate: (int(candidate.key, 16) + salt) % 5 or math.inf)
    asked = flat(rounds)
    assert len(asked) == len(set(asked)) == len(search.history)
    assert asked[: len(search.seeds)] == search.seeds[: len(asked)]
    assert all(search.space.contains(child) for child in asked[len(search.seeds) :])
    sizes = search.settings
    assert len(rounds) <= 1 + sizes.iterations
    assert len(rounds[0]) <= max(sizes.population, len(search.seeds))
    assert all(0 < len(candidates) <= sizes.mutations + sizes.crossovers for candidates in rounds[1:])
    assert sizes.max_evaluations is None or len(asked) <= sizes.max_evaluations
    assert search.ask() == []


def test_counts_at_the_papers_settings():
    search = PaperSearch(SPACE, [pi(), ntk()], PaperSettings(), seed=0)
    rounds = run(search, distance_to_a_step)
    assert [len(candidates) for candidates in rounds] == [64] + [32] * 40
    assert len(search.history) == 1344
    assert [scored.round for scored in search.history[::32]] == [0, 0, *range(1, 41)]


@pytest.mark.parametrize("limit", [1, 2, 12, 13, 22, 30, 61])
def test_max_evaluations_is_met_exactly(limit):
    sizes = PaperSettings(population=12, mutations=5, crossovers=5, iterations=6, parents=6, max_evaluations=limit)
    limited = run(PaperSearch(SPACE, [pi(), ntk()], sizes, seed=1), distance_to_a_step)
    unlimited = run(PaperSearch(SPACE, [pi(), ntk()], SMALL, seed=1), distance_to_a_step)
    assert flat(limited) == flat(unlimited)[:limit]
    assert sum(map(len, limited)) == limit


def test_same_seed_same_search_whatever_the_order_of_the_scores():
    searches = [PaperSearch(SPACE, [pi(), ntk()], SMALL, seed=7) for _ in range(2)]
    first, second = run(searches[0], noise), run(searches[1], noise, order=random.Random(0))
    assert first == second
    assert searches[0].history == searches[1].history
    assert run(PaperSearch(SPACE, [pi(), ntk()], SMALL, seed=8), noise) != first


def test_equal_scores_are_ranked_in_the_order_asked():
    first, second = (PaperSearch(SPACE, [pi(), ntk()], SMALL, seed=7) for _ in range(2))
    assert run(first, lambda candidate: 1.0) == run(second, lambda candidate: 1.0, order=random.Random(1))
    assert first.best == (SPACE.quantise(pi()), 1.0)


def test_the_search_is_the_same_in_every_python_version():
    """Pinned, so that a factors.json can be made again from its seed."""
    search = PaperSearch(SearchSpace(4, 1.0, 5.0), [Candidate((1.0, 2.0, 3.0, 4.0), 0, 1.0)], SMALL, seed=3)
    run(search, noise)
    last = search.history[-1].candidate
    assert (len(search.history), last.lambdas, last.n_hat) == (72, (1.95, 2.23, 4.3, 4.77), 128)


@pytest.mark.parametrize("seed", range(4))
def test_search_finds_factors_far_better_than_its_seeds(seed):
    seeds = [pi(), ntk()]
    sizes = PaperSettings(iterations=15)
    search = PaperSearch(SPACE, seeds, sizes, seed)
    run(search, distance_to_a_step)
    candidate, score = search.best
    assert score == distance_to_a_step(candidate)
    assert score < 0.5 * min(map(distance_to_a_step, seeds))


def test_round_0_is_the_quantised_seeds_without_duplicates_and_then_mutations():
    seeds = [pi(), ntk(), pi(), Candidate((SCALE + 1e-4,) * PAIRS, 0, 1.0)]
    asked = PaperSearch(SPACE, seeds, SMALL, seed=0).ask()
    assert asked[:2] == [SPACE.quantise(pi()), SPACE.quantise(ntk())]
    assert len(asked) == SMALL.population
    kept = [max(same(child, seed) for seed in asked[:2]) for child in asked[2:]]
    assert sum(kept) / len(kept) > 0.5 * PAIRS, "about 0.7 of the genes of a seed are kept"


def same(one, other):
    return sum(a == b for a, b in zip(one.lambdas, other.lambdas, strict=True))


def test_seeds_outside_the_space_are_asked_as_they_are_and_have_children_inside():
    seeds = [
        Candidate((0.9, 3.0, 2.0, 30.0), 5, 1.3),  # below, out of order, above, n_hat not a choice, own attention
        Candidate((20.0,) * 4, 0, 1.0),
    ]
    space = SearchSpace(4, 1.0, 10.0, attention_factor=1.1)
    search = PaperSearch(space, seeds, SMALL, seed=0)
    rounds = run(search, noise)
    assert rounds[0][:2] == seeds
    assert all(space.contains(child) for child in flat(rounds)[2:])
    assert len(rounds) == 1 + SMALL.iterations


def test_invalid_candidates_are_never_parents_and_never_best():
    """No gene of the invalid seed turns up in a child."""
    space = SearchSpace(2, 1.0, 10.0, n_hat_choices=(0,))
    invalid, good = Candidate((2.22, 9.99), 0, 1.0), Candidate((5.0, 9.0), 0, 1.0)
    sizes = PaperSettings(population=2, mutations=8, crossovers=8, mutation_probability=0.5, iterations=1, parents=8)
    for seed in range(10):
        search = PaperSearch(space, [invalid, good], sizes, seed)
        search.tell(dict(zip(search.ask(), [math.inf, 3.0], strict=True)))
        children = search.ask()
        assert len(children) == 8, "one valid parent has mutations but no crossovers"
        assert all(same(child, invalid) == 0 for child in children)
        search.tell({child: math.inf for child in children})
        assert search.best == (good, 3.0)


def test_a_search_without_a_valid_candidate_ends():
    search = PaperSearch(SPACE, [pi()], SMALL, seed=0)
    assert len(run(search, lambda candidate: math.inf)) == 1
    assert search.best is None


def test_parents_are_the_best_of_everything_told():
    """When few genes mutate, every child of the last round is close to one of the two best so far."""
    sizes = PaperSettings(population=20, mutations=10, crossovers=0, mutation_probability=0.05, iterations=5, parents=2)
    search = PaperSearch(SPACE, [pi(), ntk()], sizes, seed=0)
    for _ in range(6):
        best = [scored.candidate for scored in search.ranked()[:2]]
        children = search.ask()
        if best:
            assert len(children) == 10
            assert all(max(same(child, parent) for parent in best) >= PAIRS - 6 for child in children)
        search.tell({child: distance_to_a_step(child) for child in children})


def test_best_with_n_hat_0():
    search = PaperSearch(SPACE, [pi(), ntk()], SMALL, seed=0)
    run(search, distance_to_a_step)
    candidate, score = search.best_with(lambda candidate: candidate.n_hat == 0)
    assert candidate.n_hat == 0
    assert score == min(scored.score for scored in search.history if scored.candidate.n_hat == 0)
    assert search.best[0].n_hat > 0
    assert search.best_with(lambda candidate: False) is None


def test_crossover_draws_uniformly_from_the_monotone_children():
    search = PaperSearch(SearchSpace(3, 1.0, 10.0, 1.0, (0, 4)), [Candidate((1.0, 2.0, 3.0), 0, 1.0)], SMALL, seed=0)
    first, second = Genes((0, 1, 5), 0), Genes((2, 3, 6), 4)
    drawn = [search._cross(first, second) for _ in range(6000)]
    monotone = {(0, 1, 5), (0, 1, 6), (0, 3, 5), (0, 3, 6), (2, 3, 5), (2, 3, 6)}
    counts = {indices: sum(child.indices == indices for child in drawn) for indices in monotone}
    assert sum(counts.values()) == len(drawn), "nothing but monotone mixtures"
    expected = len(drawn) / len(monotone)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())
    assert abs(sum(child.n_hat == 4 for child in drawn) - 3000) < 200


def test_crossover_of_parents_with_many_lambdas_mixes_them():
    """Of the 2**64 mixtures of parents that cross once, about a thousand are monotone; those are drawn."""
    pairs = 64
    search = PaperSearch(SearchSpace(pairs, 1.0, 10.0), [Candidate((1.0,) * pairs, 0, 1.0)], SMALL, seed=0)
    flat, steep = Genes((300,) * pairs, 0), Genes(tuple(10 * i for i in range(pairs)), 0)
    children = {search._cross(flat, steep).indices for _ in range(200)}
    assert len(children) > 150
    assert all(list(child) == sorted(child) for child in children)


@pytest.mark.parametrize(("probability", "kept"), [(0.3, 0.7), (0.05, 0.95)])
def test_mutation_keeps_genes_with_their_probability(probability, kept):
    sizes = PaperSettings(mutation_probability=probability)
    search = PaperSearch(SearchSpace(PAIRS, 1.0, 1000.0), [pi()], sizes, seed=0)
    parent = Genes(tuple(range(4000, 90000, 5400))[:PAIRS], 12)
    children = [search._mutate(parent) for _ in range(2000)]
    lambdas_kept = sum(a == b for child in children for a, b in zip(child.indices, parent.indices, strict=True))
    assert lambdas_kept / (2000 * PAIRS) == pytest.approx(kept, abs=0.02)
    n_hat_kept = kept + (1 - kept) / len(SPACE.n_hat_choices)
    assert sum(child.n_hat == 12 for child in children) / 2000 == pytest.approx(n_hat_kept, abs=0.04)


def test_mutation_reaches_every_monotone_choice():
    search = PaperSearch(SearchSpace(2, 1.0, 1.5, 0.1), [Candidate((1.2, 1.3), 0, 1.0)], SMALL, seed=0)
    children = {search._mutate(Genes((2, 3), 0)).indices for _ in range(3000)}
    assert children == {(i, j) for i in range(6) for j in range(i, 6)}


def test_population_mutations_and_crossovers_are_halved_above_512k():
    assert PaperSettings.paper(512 * 1024) == PaperSettings(64, 16, 16, 0.3, 40, 32, None)
    assert PaperSettings.paper(512 * 1024 + 1) == PaperSettings(32, 8, 8, 0.3, 40, 32, None)


@pytest.mark.parametrize(
    "changed",
    [
        {"population": 0},
        {"mutations": -1},
        {"crossovers": -1},
        {"iterations": -1},
        {"parents": 0},
        {"parents": 1},
        {"mutations": 0, "crossovers": 0},
        {"mutation_probability": 0.0},
        {"mutation_probability": 1.5},
        {"mutation_probability": math.nan},
        {"max_evaluations": 0},
    ],
)
def test_unusable_sizes_are_refused(changed):
    with pytest.raises(SettingsError):
        PaperSettings(**changed)


@pytest.mark.parametrize("seeds", [[], [Candidate((1.0, 2.0), 0, 1.0)]])
def test_unusable_seeds_are_refused(seeds):
    with pytest.raises(SettingsError, match="to start from"):
        PaperSearch(SPACE, seeds, SMALL, seed=0)


def test_ask_and_tell_alternate_and_fit():
    search = PaperSearch(SPACE, [pi(), ntk()], SMALL, seed=0)
    scores = dict.fromkeys(search.ask(), 1.0)
    with pytest.raises(AssertionError):
        search.ask()
    for wrong in [{}, dict(list(scores.items())[1:]), {**scores, Candidate((1.0,) * PAIRS, 0, 9.0): 1.0}]:
        with pytest.raises(AssertionError):
            search.tell(wrong)
    with pytest.raises(AssertionError):
        search.tell({**scores, search.seeds[0]: math.nan})
    assert search.round == 0
    search.tell(scores)
    assert search.round == 1
