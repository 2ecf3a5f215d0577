"""Outlooks: who is level in the end is seldom dropped, who is far behind mostly, whatever samples have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import t

from longrope.search.evaluation import BlockScore
from longrope.search.outlook import CHANCE, Outlook

BLOCKS = (6, 10, 4, 8)
"""Of each sample, of ten tokens each."""
Lags = Sequence[Sequence[float]]


def scores(lags: Lags) -> list[BlockScore]:
    """Of a candidate that is behind by so many nats a token in each block of the samples, or of the first of them."""
    return [BlockScore(tuple(10 * (2 + lag) for lag in blocks), 10 * len(blocks), 0.0) for blocks in lags]


RIVAL = scores([[0.0] * count for count in BLOCKS])


def first(outlook: Outlook, lags: Lags, count: int) -> list[BlockScore]:
    """Scores on the first samples in the order of the outlook."""
    return scores([lags[place] for place in outlook.order[:count]])


def drawn(
    random: np.random.Generator, count: int, end: float = 0.0, own: float = 1.0, blocks: Sequence[int] = BLOCKS
) -> list[list[list[float]]]:
    """Lags of candidates that end so far behind on the average of all blocks.

    They are more or less unlike the rival, and blocks of a sample are alike: they share half of the variance.
    """
    found = []
    for _ in range(count):
        size = own * 0.03 * math.exp(random.normal() / 2)
        lags = [size * (random.normal() + random.normal(size=each)) for each in blocks]
        shift = end - np.concatenate(lags).mean()
        found.append([(each + shift).tolist() for each in lags])
    return found


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_those_level_in_the_end_one_in_a_hundred_is_dropped_at_a_look_or_fewer(count: int) -> None:
    """Though the scatter of blocks, taken for independent, would drop many more at the first two looks.

    Samples are alike, so that which comes first is chance, and the past that chose it flatters itself a little.
    """
    random, wrong, naive, alike = np.random.default_rng(0), [], [], (8, 8, 8, 8)
    rival = scores([[0.0] * each for each in alike])
    for _ in range(150):
        outlook = Outlook([scores(lags) for lags in drawn(random, 48, blocks=alike)], rival)
        for lags in drawn(random, 10, blocks=alike):
            wrong.append(outlook.is_lost(first(outlook, lags, count)))
            blocks = np.concatenate([lags[place] for place in outlook.order[:count]])
            naive.append(blocks.mean() > 2.33 * blocks.std(ddof=1) / math.sqrt(len(blocks)))
    assert np.mean(wrong) < 2 * CHANCE
    assert count == 3 or np.mean(naive) > 4 * CHANCE


def test_of_those_far_behind_most_are_dropped_and_of_those_far_ahead_none() -> None:
    random = np.random.default_rng(1)
    outlook = Outlook([scores(lags) for lags in drawn(random, 48)], RIVAL)
    assert np.mean([outlook.is_lost(first(outlook, lags, 2)) for lags in drawn(random, 200, 0.3)]) > 0.95
    assert not any(outlook.is_lost(first(outlook, lags, 1)) for lags in drawn(random, 200, -0.3))


def test_the_chance_at_a_look_is_one_in_a_hundred() -> None:
    assert CHANCE == 0.01


@pytest.mark.parametrize("place", range(3))
def test_a_sample_that_told_least_of_the_others_is_not_the_first(place: int) -> None:
    random = np.random.default_rng(4)
    noise = [0.4 if each == place else 0.01 for each in range(3)]
    lags = [[[end + size * random.normal()] * 4 for size in noise] for end in random.uniform(1, 2, 40)]
    assert Outlook([scores(each) for each in lags], scores([[0.0] * 4] * 3)).order[0] != place


@pytest.mark.parametrize("told", [0, 1])
def test_a_sample_that_told_hardly_anybody_apart_comes_last(told: int) -> None:
    """Though of the one that it told apart it said all."""
    ends = np.random.default_rng(6).normal(size=12).tolist()
    past = [scores([[end if place < told else 0.0] * 4, [end] * 4, [1.1 * end] * 4]) for place, end in enumerate(ends)]
    assert Outlook(past, scores([[0.0] * 4] * 3)).order[-1] == 0


@pytest.mark.parametrize("seed", range(8))
def test_the_order_of_samples_leaves_least_open_at_every_step(seed: int) -> None:
    """Written out for samples of one length."""
    past = drawn(np.random.default_rng(seed), 20)
    past = [[lags[1][:4], lags[3][:4], lags[2], lags[0][:4]] for lags in past]
    outlook = Outlook([scores(lags) for lags in past], scores([[0.0] * 4] * 4))

    def left_open(places: list[int]) -> float:
        squares = []
        for lags in past:
            seen = np.concatenate([lags[place] for place in places])
            squares.append(((np.concatenate(lags).mean() - seen.mean()) / np.abs(seen).mean()) ** 2)
        return float(np.mean(squares))

    for step in range(4):
        before = outlook.order[:step]
        choices = [place for place in range(4) if place not in before]
        assert left_open(outlook.order[: step + 1]) == min(left_open([*before, place]) for place in choices)
    assert sorted(outlook.order) == [0, 1, 2, 3]


def test_candidates_that_are_the_rival_in_all_but_name_teach_nothing() -> None:
    """Nor does anybody seem lost where there are no others."""
    random = np.random.default_rng(3)
    some = [scores(lags) for lags in drawn(random, 4)]
    alone, among = Outlook(some, RIVAL), Outlook(some + [RIVAL] * 40, RIVAL)
    for lags in drawn(random, 100):
        assert alone.is_lost(first(alone, lags, 1)) == among.is_lost(first(among, lags, 1))
    nobody = Outlook([RIVAL] * 40, RIVAL)
    assert not nobody.is_lost(first(nobody, [[5.0] * count for count in BLOCKS], 1))


def test_a_past_of_candidates_that_changed_nothing_makes_nobody_look_lost() -> None:
    """Nearly the rival itself, which they leave by a hundredth of what the others do."""
    random = np.random.default_rng(2)
    some, same = drawn(random, 16), drawn(random, 32, own=0.01)
    outlook = Outlook([scores(lags) for lags in some + same], RIVAL)
    wrong = [outlook.is_lost(first(outlook, lags, 1)) for lags in drawn(random, 500)]
    assert np.mean(wrong) < 2.5 * CHANCE


def test_where_a_candidate_ends_is_expected_by_what_it_lost_and_doubted_by_how_unlike_it_was() -> None:
    """Written out for two of the past."""
    rival = scores([[0.0] * 2, [0.0] * 6])
    past = [scores(lags) for lags in ([[0.1, 0.3], [0.19] * 6], [[0.3, -0.3], [0.01] * 6])]
    outlook = Outlook(past, rival)
    assert outlook.order == [0, 1]
    assert outlook.expected(scores([[0.5, -0.3]])) == pytest.approx(2 + 0.1)
    added = (0.4 + 1.14) / 8 - 0.2, 0.06 / 8 - 0.0
    proportion = math.sqrt(((added[0] / 0.2) ** 2 + (added[1] / 0.3) ** 2) / 2)
    limit = t.ppf(1 - CHANCE, 2) * proportion
    for size, most in ((0.25, 0.25), (0.1, 0.1), (0.6, 0.3)):  # unlike by no more than the past was
        for lag, lost in ((limit * most + 1e-6, True), (limit * most - 1e-6, False)):
            assert lag < size
            assert outlook.is_lost(scores([[lag + size, lag - size]])) == lost


def test_one_block_tells_of_a_candidate_too() -> None:
    """Where samples agreed in the past; a candidate as good as the rival in every block is not lost."""
    rival = [BlockScore((20.0,), 10, 0.0)] * 3
    past = [[BlockScore((20.0 + lag + each,), 10, 0.0) for each in (0.0, 0.2, -0.2)] for lag in (1.0, 2.0, -1.5)]
    outlook = Outlook(past, rival)
    assert outlook.is_lost([BlockScore((21.0,), 10, 0.0)])
    assert not outlook.is_lost([BlockScore((20.0,), 10, 0.0)])
    assert not outlook.is_lost([BlockScore((19.0,), 10, 0.0)])
