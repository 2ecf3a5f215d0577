"""Levels: every vector of genes is a candidate of the space, the start is where it should be, genes do as they say."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.rope.factors import RopeFactors
from longrope.rope.methods import yarn
from longrope.search.candidate import Candidate
from longrope.search.levels import FIRST_RAMPS, Level, PairLevel, Ramp, RampLevel
from longrope.search.space import SearchSpace

WINDOW, RATIO = 64, 8.0


def plain(pairs: int) -> RopeFactors:
    return RopeFactors.identity(10000.0, 2 * pairs, WINDOW)


def ramp_of(pairs: int, scaled: bool = False) -> Ramp:
    present = yarn(plain(pairs), 2 * WINDOW) if scaled else plain(pairs)
    return Ramp(present, 2 * WINDOW if scaled else WINDOW, RATIO)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    return SearchSpace(
        draw(st.sampled_from([1, 2, 32])),
        draw(st.sampled_from([1.0, 0.5, 0.937])),
        draw(st.sampled_from([1.0, 1.2, 10.005, 32.0])),
        n_hat_choices=draw(st.sampled_from([(0,), (4,), (0, 4, 16)])),
        attention_factor=draw(st.sampled_from([1.0, 1.0819778])),
        attention_span=draw(st.sampled_from([1.0, 1.00004, 1.25])),
    )


def centres(space: SearchSpace) -> st.SearchStrategy[Candidate]:
    """Anything a seed may be, in the space or not."""
    lambdas = st.lists(st.floats(0.1, 60.0), min_size=space.pairs, max_size=space.pairs).map(tuple)
    return st.builds(Candidate, lambdas, st.integers(0, 20), st.floats(0.8, 1.5))


@st.composite
def levels(draw: st.DrawFn) -> Level:
    space = draw(spaces())
    if draw(st.booleans()):
        return RampLevel(space, ramp_of(space.pairs, draw(st.booleans())))
    first, last = sorted(draw(st.integers(0, space.pairs - 1)) for _ in range(2))
    return PairLevel(space, draw(centres(space)), first, last, draw(st.booleans()))


@settings(max_examples=150)
@given(levels(), st.data())
def test_every_vector_of_finite_numbers_is_a_candidate_of_the_space(level: Level, data: st.DataObject) -> None:
    number = st.floats(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)
    genes = np.array(data.draw(st.lists(number, min_size=level.size, max_size=level.size)))
    assert level.space.contains(level.decode(genes))
    assert level.space.contains(level.decode(level.start))


@pytest.mark.parametrize("number", [sys.float_info.max, -sys.float_info.max])
def test_no_number_is_too_large(number: float) -> None:
    ramp, pairs = (
        RampLevel(WIDE, ramp_of(PAIRS)),
        PairLevel(WIDE, Candidate((2.0,) * PAIRS, 0, 1.1), 3, 20, True),
    )
    for level in (ramp, pairs):
        assert WIDE.contains(level.decode(np.full(level.size, number)))


@settings(max_examples=60)
@given(st.data())
def test_pairs_start_at_their_centre_in_the_space(data: st.DataObject) -> None:
    space = data.draw(spaces())
    centre = data.draw(centres(space))
    first, last = sorted(data.draw(st.integers(0, space.pairs - 1)) for _ in range(2))
    level = PairLevel(space, centre, first, last, chooses_n_hat=data.draw(st.booleans()))
    assert level.decode(level.start) == space.project(centre)


# --- The ramp ---

PAIRS = 32
WIDE = SearchSpace(PAIRS, 1.0, 100.0, attention_factor=1.1, attention_span=1.25)


@settings(max_examples=60)
@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.booleans())
def test_a_ramp_rises_above_the_present_factors(genes: list[float], scaled: bool) -> None:
    ramp = ramp_of(PAIRS, scaled)
    unbounded = SearchSpace(PAIRS, 1.0, 1e5)
    lambdas = RampLevel(unbounded, ramp).decode(np.array(genes)).lambdas
    rises = np.array(lambdas) / np.array(ramp.present.lambdas)
    # The grid moves a lambda by half a step.
    assert all(rise >= 1 - 0.005 for rise in rises)
    assert all(after >= before * (1 - 0.0101) for before, after in pairwise(rises))


def test_the_ramp_begins_and_ends_at_turns_within_the_present_window() -> None:
    """From 16 turns up nothing; below 0.2 turns the ratio to the power exp(0.2)."""
    turns = plain(PAIRS).inv_freq() * WINDOW / (2 * math.pi)
    level = RampLevel(WIDE, ramp_of(PAIRS))
    lambdas = np.array(level.decode(level.start).lambdas)
    height = RATIO ** math.exp(0.2)
    assert lambdas[turns < 0.2] == pytest.approx(height, abs=0.005)
    between = (turns > 0.2) & (turns < 10)
    assert between.sum() > 10
    assert (np.diff(lambdas[between]) > 0).all()
    # Halfway in log turns it has come up by half to the power of its shape.
    half = np.argmin(np.abs(np.log(turns) - (math.log(16) - math.log(80) / 2)))
    t = (math.log(16) - math.log(turns[half])) / math.log(80)
    assert lambdas[half] == pytest.approx(height ** (t**1.5), abs=0.006)
    long = RampLevel(WIDE, Ramp(plain(PAIRS), 64 * WINDOW, RATIO))  # the same pairs turn more often
    fast = 64 * turns > 16
    assert fast.sum() > 10
    assert set(np.array(long.decode(long.start).lambdas)[fast]) == {1.0}


@pytest.mark.parametrize(("ratio", "begins"), [(1.5, 1.5), (8.0, 8.0), (32.0, 32.0), (512.0, 32.0)])
def test_the_second_ramp_goes_from_as_many_turns_as_the_ratio_to_half_a_turn(ratio: float, begins: float) -> None:
    ramp = Ramp(plain(PAIRS), 64 * WINDOW, ratio)
    space = SearchSpace(PAIRS, 1.0, 2000.0, attention_factor=1.1, attention_span=1.25)
    level = RampLevel(space, ramp)
    (genes,) = level.others
    second = level.decode(genes)
    t = np.clip((math.log(begins) - np.log(ramp.turns())) / (math.log(begins) - math.log(0.5)), 0, 1)
    assert ((t > 0) & (t < 1)).sum() >= 3
    assert second.lambdas == pytest.approx(ratio ** (t**2), rel=0.006)
    assert second.attention_factor == level.decode(level.start).attention_factor == 1.1
    assert 1 + len(level.others) == FIRST_RAMPS


def test_a_model_that_was_scaled_before_has_no_second_ramp() -> None:
    assert RampLevel(WIDE, ramp_of(PAIRS, scaled=True)).others == ()


@settings(max_examples=60)
@given(
    st.lists(st.floats(-2, 2), min_size=5, max_size=5),
    st.sampled_from([(0, 1), (1, -1), (2, 1), (3, -1)]),
    st.floats(0.1, 2),
)
def test_each_gene_of_the_ramp_moves_lambdas_one_way(genes: list[float], moved: tuple[int, int], by: float) -> None:
    """Up with an earlier start and with the height, down with the width and with the exponent."""
    gene, way = moved
    level, changed = RampLevel(WIDE, ramp_of(PAIRS)), np.array(genes)
    before = level.decode(changed)
    changed[gene] += by
    after = level.decode(changed)
    differences = way * (np.array(after.lambdas) - np.array(before.lambdas))
    assert (differences >= 0).all()
    assert after.attention_factor == before.attention_factor


@pytest.mark.parametrize("gene", range(4))
def test_each_gene_of_the_ramp_matters(gene: int) -> None:
    level = RampLevel(WIDE, ramp_of(PAIRS))
    change = np.zeros(5)
    change[gene] = 1.0
    start, moved = level.decode(level.start), level.decode(level.start + change)
    assert moved.lambdas != start.lambdas
    fixed_end = moved.lambdas[-1] == start.lambdas[-1]
    assert fixed_end == (gene != 2)  # the height alone moves the slowest pair


def test_a_ramp_keeps_the_smallest_n_hat() -> None:
    space = SearchSpace(PAIRS, 1.0, 100.0, n_hat_choices=(4, 16))
    level = RampLevel(space, ramp_of(PAIRS))
    assert (level.decode(level.start).n_hat, level.choices, level.size) == (4, 0, 4)


@pytest.mark.parametrize("kind", ["ramp", "pairs"])
def test_the_attention_gene_is_a_relative_change_within_the_span(kind: str) -> None:
    centre = Candidate((2.0,) * PAIRS, 0, WIDE.attention_factor)
    level = RampLevel(WIDE, ramp_of(PAIRS)) if kind == "ramp" else PairLevel(WIDE, centre, 3, 20, False)

    def at(gene: float) -> float:
        genes = level.start.copy()
        genes[-1] = gene
        return level.decode(genes).attention_factor

    assert at(0) == 1.1
    assert at(1) == round(1.1 * math.exp(0.06), 4)
    assert at(-1) == round(1.1 * math.exp(-0.06), 4)
    assert (at(9), at(-9)) == (1.375, 0.88)
    fixed = SearchSpace(PAIRS, 1.0, 100.0, attention_factor=1.1)
    assert RampLevel(fixed, ramp_of(PAIRS)).size == 4
    assert PairLevel(fixed, centre, 3, 20, False).size == 18


# --- Pairs ---

RISING = Candidate(tuple(1.0 + 0.1 * i for i in range(PAIRS)), 0, 1.1)


def test_pairs_that_turn_often_or_hardly_are_not_moved_by_themselves() -> None:
    """Of 32 pairs, 0 to 5 make at least 8 turns within 256 tokens, and those from 19 on less than 0.2."""
    turns = plain(PAIRS).inv_freq() * 256 / (2 * math.pi)
    assert (turns[5] > 8 > turns[6], turns[18] > 0.2 > turns[19]) == (True, True)
    assert replace(ramp_of(PAIRS), window=256).moved_pairs() == (6, 19)


def test_turns_are_those_of_the_present_factors_within_the_present_window() -> None:
    """A pair that was slowed down eight times turns in a window of eight times as it did before."""
    interpolated = replace(plain(PAIRS), lambdas=(8.0,) * PAIRS)
    scaled, unscaled = Ramp(interpolated, 8 * 256, RATIO), Ramp(plain(PAIRS), 256, RATIO)
    assert scaled.moved_pairs() == unscaled.moved_pairs()
    wider, genes = replace(WIDE, lambda_max=1000.0), np.zeros(5)
    rises = np.array(RampLevel(wider, scaled).decode(genes).lambdas) / 8
    assert rises == pytest.approx(RampLevel(WIDE, unscaled).decode(genes).lambdas, abs=0.006)


def test_some_pair_is_always_moved() -> None:
    assert replace(ramp_of(PAIRS), window=10**6).moved_pairs() == (PAIRS - 1, PAIRS - 1)
    assert replace(ramp_of(1), window=10**6).moved_pairs() == (0, 0)
    assert replace(ramp_of(PAIRS), window=1).moved_pairs() == (0, 0)


def test_a_gene_is_the_log_lambda_of_its_pair() -> None:
    """In units of 0.05; pairs before have none, and those after go along with the last."""
    space = SearchSpace(PAIRS, 1.0, 1e6, lambda_step=1e-5)  # so fine that no step of the grid shows
    centre = Candidate(tuple(np.round(1.3 ** np.arange(1, PAIRS + 1), 2)), 0, 1.1)
    level = PairLevel(space, centre, 5, 20, False)
    assert level.size == 16
    for gene, sign in product(range(level.size), (1.0, -1.0)):
        genes = level.start.copy()
        genes[gene] += sign
        moved = np.log(level.decode(genes).lambdas) - np.log(centre.lambdas)
        expected = np.zeros(PAIRS)
        expected[5 + gene] = sign * 0.05
        if gene == 15:
            expected[20:] = sign * 0.05
        assert moved == pytest.approx(expected, abs=1e-5)


def test_lambdas_never_fall_from_a_pair_to_the_next() -> None:
    level = PairLevel(WIDE, RISING, 0, PAIRS - 1, False)
    genes = level.start.copy()
    genes[10] = -100.0
    lambdas = level.decode(genes).lambdas
    assert lambdas[10] == lambdas[9] == pytest.approx(RISING.lambdas[9])
    assert lambdas[11:] == pytest.approx(RISING.lambdas[11:])
    genes[10] = math.log(3.3) / level.UNIT  # the next ones are lifted to it
    lambdas = level.decode(genes).lambdas
    assert lambdas[10:] == pytest.approx(np.maximum(RISING.lambdas[10:], 3.3))


def test_a_block_that_is_moved_takes_along_who_is_in_its_way() -> None:
    level = PairLevel(WIDE, RISING, 4, PAIRS - 1, False)
    unit = math.log(1.5) / level.UNIT
    for step, expected in (
        (unit, [*RISING.lambdas[:10], *(1.5 * each for each in RISING.lambdas[10:13])]),
        (-unit, [*(min(each, 2.0 / 1.5) for each in RISING.lambdas[:10]), 2.0 / 1.5, 2.1 / 1.5, 2.2 / 1.5]),
    ):
        lambdas = level.decode(level.moved(level.start, 6, 9, step)).lambdas
        expected = [*RISING.lambdas[:4], *expected[4:]]  # who has no gene stays
        expected += [max(each, expected[-1]) for each in RISING.lambdas[13:]]
        assert lambdas == pytest.approx(np.maximum.accumulate(expected), abs=0.006)


@settings(max_examples=100)
@given(st.data())
def test_moved_genes_are_within_the_bounds_and_rise(data: st.DataObject) -> None:
    """So that a later move changes something, and by as much as it says where there is room."""
    space = data.draw(spaces())
    first, last = sorted(data.draw(st.integers(0, space.pairs - 1)) for _ in range(2))
    level = PairLevel(space, data.draw(centres(space)), first, last, False)
    pairs = level.size - level.extras
    genes = level.start
    for _ in range(3):
        begin = data.draw(st.integers(0, pairs - 1))
        end = data.draw(st.integers(begin + 1, pairs))
        before = genes.copy()
        genes = level.moved(genes, begin, end, data.draw(st.floats(-200, 200)))
        lambdas = genes[:pairs]
        assert (np.diff(lambdas) >= 0).all()
        bounds = math.log(space.lambda_min), math.log(space.lambda_max)
        assert bounds[0] - 1e-9 <= level.UNIT * lambdas.min() <= level.UNIT * lambdas.max() <= bounds[1] + 1e-9
        assert (genes[pairs:] == before[pairs:]).all()
        assert space.contains(level.decode(genes))


@settings(max_examples=100)
@given(levels(), st.data())
def test_a_block_that_is_not_moved_changes_nothing(level: Level, data: st.DataObject) -> None:
    """Whatever the genes, those of a child of two parents among them: they mean the same, level or not."""
    pairs = level.size - level.extras
    genes = level.start + np.array(data.draw(st.lists(st.floats(-30, 30), min_size=level.size, max_size=level.size)))
    begin = data.draw(st.integers(0, pairs - 1))
    end = data.draw(st.integers(begin + 1, pairs))
    assert level.decode(level.moved(genes, begin, end, 0.0)) == level.decode(genes)


def test_genes_do_not_go_below_a_pair_that_has_none() -> None:
    level = PairLevel(WIDE, RISING, 10, 20, False)
    genes = level.moved(level.start, 0, 11, -200.0)
    assert genes[:11].tolist() == pytest.approx([math.log(RISING.lambdas[9]) / level.UNIT] * 11)


def test_pairs_after_the_last_keep_their_distance_from_it() -> None:
    level = PairLevel(WIDE, RISING, 0, 20, False)
    genes = level.start.copy()
    genes[10] = math.log(4.5) / level.UNIT  # lifts those up to the last as well
    lambdas = level.decode(genes).lambdas
    assert lambdas[20:] == pytest.approx([4.5 * each / RISING.lambdas[20] for each in RISING.lambdas[20:]], abs=0.006)


def test_a_ramp_moves_its_genes_alone() -> None:
    level = RampLevel(WIDE, ramp_of(PAIRS))
    assert level.extras == 1
    assert level.moved(level.start, 1, 3, -0.5).tolist() == [0, -0.5, -0.5, 0, 0]
    assert level.start.tolist() == [0] * 5


@pytest.mark.parametrize("chooses", [True, False])
def test_the_last_gene_is_the_place_of_n_hat(chooses: bool) -> None:
    space = SearchSpace(PAIRS, 1.0, 100.0, n_hat_choices=(0, 4, 16))
    level = PairLevel(space, Candidate((2.0,) * PAIRS, 6, 1.0), 0, PAIRS - 1, chooses)
    assert (level.choices, level.size) == ((3, PAIRS + 1) if chooses else (0, PAIRS))
    assert level.decode(level.start).n_hat == 4  # the nearest choice
    genes = level.start.copy()
    found = []
    for place in (-7.0, 0.4, 1.2, 1.8, 5.0):
        genes[-1] = place
        found.append(level.decode(genes).n_hat)
    assert found == ([0, 0, 4, 16, 16] if chooses else [4] * 5)
