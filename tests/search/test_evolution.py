"""The genetic optimiser: its children are new, near their parents in one place, and of the best parents alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import pytest

from longrope.rope.factors import RopeFactors
from longrope.search.candidate import Candidate
from longrope.search.evolution import GeneticOptimiser
from longrope.search.levels import Genes, PairLevel, Ramp, RampLevel
from longrope.search.space import SearchSpace

PAIRS = 16
CENTRE = Candidate(tuple(2.0 + 0.5 * pair for pair in range(PAIRS)), 4, 1.1)
N_HAT = (0, 2, 4, 8, 16, 32)


def level_of(n_hat: tuple[int, ...] = (4,), span: float = 1.0, lambda_max: float = 40.0) -> PairLevel:
    space = SearchSpace(PAIRS, 1.0, lambda_max, n_hat_choices=n_hat, attention_factor=1.1, attention_span=span)
    return PairLevel(space, CENTRE, 0, PAIRS - 1, len(n_hat) > 1)


def children(optimiser: GeneticOptimiser, rounds: int = 60, known: Sequence[Candidate] = (CENTRE,)) -> list[Genes]:
    """Of the same parents, since nothing is told."""
    return [genes for _ in range(rounds) for genes in optimiser.ask(known)]


def changed(child: Genes, parent: Genes) -> list[int]:
    return np.flatnonzero(child != parent).tolist()


def test_a_child_is_its_parent_with_one_block_moved_by_a_step_of_any_size() -> None:
    """Of one parent, so that there is nothing to cross; blocks and steps come in all sizes, and go both ways."""
    level = level_of()
    found = [
        (places := changed(child, level.start), child[places] - level.start[places])
        for child in children(GeneticOptimiser(level, 8, 0, start_score=3.0))
        if changed(child, level.start)
    ]
    assert all(places == list(range(places[0], places[-1] + 1)) for places, _ in found)
    lengths = {len(places) for places, _ in found}
    assert {1, 2, 3, PAIRS} <= lengths
    largest = [float(steps[np.abs(steps).argmax()]) for _, steps in found]
    assert all(abs(step) <= level.reach for step in largest)
    for way in (1, -1):
        sizes = [way * step for step in largest if way * step > 0]
        assert min(sizes) < 1.3
        assert max(sizes) > 8
        # Three of the five doublings from a half to 16 units are below 4.
        assert 0.5 < np.mean([size < 4 for size in sizes]) < 0.7
    assert {place for places, _ in found for place in places} == set(range(PAIRS))


def test_a_third_of_the_blocks_reach_to_the_end() -> None:
    """So that the level of all slow pairs moves often; of steps so small that they take no neighbours along."""
    level = level_of()
    level.reach = 0.01
    found = [changed(child, level.start) for child in children(GeneticOptimiser(level, 8, 0, 3.0), known=())]
    blocks = [places for places in found if places]
    assert 0.3 < np.mean([places[-1] == PAIRS - 1 for places in blocks]) < 0.55
    assert 0.03 < np.mean([places == [3] for places in blocks]) * PAIRS < 1


def test_the_first_round_is_drawn_about_the_start_where_nothing_is_known() -> None:
    space = SearchSpace(PAIRS, 1.0, 40.0)
    level = RampLevel(space, Ramp(RopeFactors.identity(10000.0, 2 * PAIRS, 64), 64, 8.0))
    drawn = np.array(children(GeneticOptimiser(level, 8, 0)))
    assert drawn.mean(axis=0) == pytest.approx(level.start, abs=0.15)
    assert drawn.std(axis=0) == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("start_score", [None, 3.0])
def test_what_a_level_begins_with_is_asked_for_first_and_once(start_score: float | None) -> None:
    """The start only where it has no score yet, and none that is known."""
    level = level_of()
    level.others = (level.start + 3.0, level.start + 6.0)
    first = [*([] if start_score else [level.start]), *level.others]
    optimiser = GeneticOptimiser(level, 4, 0, start_score)
    asked = [child.tolist() for child in optimiser.ask([])]
    assert asked[: len(first)] == [each.tolist() for each in first]
    later = [child.tolist() for child in children(optimiser, known=())]
    assert not [each for each in [*asked[len(first) :], *later] if each in asked[: len(first)]]
    one_by_one = GeneticOptimiser(level, 1, 0, start_score)
    assert [one_by_one.ask([])[0].tolist() for _ in first] == asked[: len(first)]
    known = [level.decode(each) for each in first[:2]]
    asked = [child.tolist() for child in GeneticOptimiser(level, 4, 0, start_score).ask(known)]
    assert not [each for each in first[:2] if each.tolist() in asked]
    assert [each.tolist() for each in first[2:]] == asked[: len(first) - 2]


def test_no_child_is_known_or_twice_in_a_round() -> None:
    """A space of 21 lambdas, of which all but two are known."""
    space = SearchSpace(1, 1.0, 1.2, n_hat_choices=(0,))
    level = PairLevel(space, Candidate((1.1,), 0, 1.0), 0, 0, False)
    everyone = [space.at((index,), 0) for index in range(space.last + 1)]
    optimiser = GeneticOptimiser(level, 8, 0, start_score=2.0)
    asked = [level.decode(genes) for genes in optimiser.ask(everyone[2:])]
    assert sorted(asked, key=lambda each: each.lambdas) == everyone[:2]
    assert optimiser.ask(everyone) == []
    assert len({level.decode(genes) for genes in optimiser.ask(())}) == 8


def told(optimiser: GeneticOptimiser, genes: list[Genes], scores: list[float], dropped: Collection[int] = ()) -> None:
    """Scores of ``genes``, as if they had been asked for; ``dropped`` are places among them."""
    optimiser.ask(())
    optimiser.tell(genes, scores, [place in dropped for place in range(len(genes))])


def parents_of(optimiser: GeneticOptimiser, candidates: list[Genes]) -> set[int]:
    """Which of ``candidates``, flat vectors of far apart values, children come of: those they share most genes with."""
    shares = [[np.mean(np.abs(child - each) < 1e-9) for each in candidates] for child in children(optimiser, rounds=30)]
    return {int(np.argmax(share)) for share in shares if max(share) > 0.6}


def flat(value: float) -> Genes:
    """At every pair the same log lambda."""
    return np.full(PAIRS, math.log(value) / PairLevel.UNIT)


def test_parents_are_the_four_best_of_all_that_were_scored_in_full() -> None:
    """Not of the last round alone, no dropped one, whatever its estimate, and none that failed."""
    candidates = [flat(1.2 * 1.4**place) for place in range(8)]
    optimiser = GeneticOptimiser(level_of(), 8, 0)
    told(optimiser, candidates[:4], [5.0, 9.0, 1.0, 6.0], {2})
    assert parents_of(optimiser, candidates) == {0, 1, 3}
    told(optimiser, candidates[4:], [7.0, math.inf, 8.0, 20.0])
    assert parents_of(optimiser, candidates) == {0, 3, 4, 6}


def test_nothing_but_failures_leaves_the_start() -> None:
    level = level_of()
    optimiser = GeneticOptimiser(level, 8, 0)
    told(optimiser, [flat(30.0)] * 3, [math.inf] * 3)
    distance = np.abs(np.array(children(optimiser, 10)) - level.start).max()
    assert distance < 10, "units; where they failed is up to 54 away"


def test_children_of_two_parents_have_blocks_of_both_or_are_blends() -> None:
    low, high = flat(2.0), flat(8.0)
    level = level_of()
    level.reach = 0.01  # so that who is only moved stays with its parent
    optimiser = GeneticOptimiser(level, 8, 0)
    told(optimiser, [low, high], [1.0, 2.0])
    found = children(optimiser)
    of_both = [child for child in found if set(np.unique(child)) == {low[0], high[0]}]
    assert 0.03 < len(of_both) / len(found) < 0.3
    places = [float((child - low)[0] / (high - low)[0]) for child in found if len(np.unique(child)) == 1]
    assert np.mean([0.01 < place < 0.99 for place in places]) > 0.02
    assert -0.26 < min(places) < -0.1, "a quarter of the way beyond either parent"
    assert 1.1 < max(places) < 1.26


@pytest.mark.parametrize(("n_hat", "span", "extras"), [(N_HAT, 1.0, 1), ((4,), 1.25, 1), (N_HAT, 1.25, 2)])
def test_n_hat_and_the_attention_factor_change_by_themselves(n_hat: tuple[int, ...], span: float, extras: int) -> None:
    level = level_of(n_hat, span)
    optimiser = GeneticOptimiser(level, 8, 0, start_score=2.0)
    kinds: dict[tuple[bool, bool, bool], int] = {}
    seen, total = set(), 0
    for child in children(optimiser, 80):
        candidate = level.decode(child)
        aside = (candidate.n_hat != CENTRE.n_hat, candidate.attention_factor != CENTRE.attention_factor)
        kind = (candidate.lambdas != CENTRE.lambdas, *aside)
        kinds[kind] = kinds.get(kind, 0) + 1
        seen.add(candidate.n_hat)
        total += 1
    alone = {kind: count for kind, count in kinds.items() if sum(kind) == 1}
    assert sum(alone.values()) == total
    assert len(alone) == 1 + extras
    assert alone[True, False, False] / total > 0.6
    assert all(count / total > 0.05 for count in alone.values())
    assert seen == (set(N_HAT) if len(n_hat) > 1 else {4})


def test_genes_stay_within_the_bounds_of_the_space() -> None:
    """However often blocks are moved on: genes beyond would have to come back before anything changed."""
    level = level_of(lambda_max=10.0)
    optimiser = GeneticOptimiser(level, 8, 0, start_score=100.0)
    score = 99.0
    for _ in range(30):  # the largest lambdas are always the best
        asked = optimiser.ask(())
        ranks = np.argsort([-float(genes.sum()) for genes in asked])
        optimiser.tell(asked, [score + float(rank) / 100 for rank in np.argsort(ranks)], [False] * len(asked))
        score -= 1
    genes = np.array(children(optimiser, 20))
    bounds = math.log(1.0) / level.UNIT, math.log(10.0) / level.UNIT
    blended = 0.5  # a blend may go beyond its parents by a quarter of what they differ
    assert bounds[0] - 1e-9 <= genes.min()
    assert genes.max() <= bounds[1] * (1 + blended)
