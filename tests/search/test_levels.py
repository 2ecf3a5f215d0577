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
from longrope.search.levels import KnotLevel, Level, Ramp, RampLevel, knot_shapes
from longrope.search.space import SearchSpace

WINDOW, RATIO = 64, 8.0


def plain(pairs: int) -> RopeFactors:
    return RopeFactors.identity(10000.0, 2 * pairs, WINDOW)


def even(pairs: int, knots: int) -> np.ndarray:
    return knot_shapes(pairs, knots, None)


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
    knots = draw(st.sampled_from(sorted({min(2, space.pairs), min(7, space.pairs), space.pairs})))
    return KnotLevel(space, draw(centres(space)), even(space.pairs, knots), draw(st.booleans()))


@settings(max_examples=150)
@given(levels(), st.data())
def test_every_vector_of_finite_numbers_is_a_candidate_of_the_space(level: Level, data: st.DataObject) -> None:
    number = st.floats(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)
    genes = np.array(data.draw(st.lists(number, min_size=level.size, max_size=level.size)))
    assert level.space.contains(level.decode(genes))
    assert level.space.contains(level.decode(level.start))


@pytest.mark.parametrize("number", [sys.float_info.max, -sys.float_info.max])
def test_no_number_is_too_large(number: float) -> None:
    ramp, knots = (
        RampLevel(WIDE, ramp_of(PAIRS)),
        KnotLevel(WIDE, Candidate((2.0,) * PAIRS, 0, 1.1), ALL, True),
    )
    for level in (ramp, knots):
        assert WIDE.contains(level.decode(np.full(level.size, number)))


@settings(max_examples=60)
@given(st.data())
def test_knots_start_at_their_centre_in_the_space(data: st.DataObject) -> None:
    space = data.draw(spaces())
    centre = data.draw(centres(space))
    knots = data.draw(st.integers(min(2, space.pairs), space.pairs))
    level = KnotLevel(space, centre, even(space.pairs, knots), chooses_n_hat=data.draw(st.booleans()))
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


@pytest.mark.parametrize("kind", ["ramp", "knots"])
def test_the_attention_gene_is_a_relative_change_within_the_span(kind: str) -> None:
    centre = Candidate((2.0,) * PAIRS, 0, WIDE.attention_factor)
    level = RampLevel(WIDE, ramp_of(PAIRS)) if kind == "ramp" else KnotLevel(WIDE, centre, even(PAIRS, 7), False)

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
    assert KnotLevel(fixed, centre, even(PAIRS, 7), False).size == 7


# --- Knots ---

ALL = np.eye(PAIRS)


@given(st.integers(1, 80), st.integers(2, 80), st.sampled_from([None, False, True]), st.integers(16, 10**6))
def test_a_gene_moves_its_knot_in_full_and_those_beside_it_not_at_all(
    pairs: int, count: int, scaled: bool | None, window: int
) -> None:
    ramp = None if scaled is None else replace(ramp_of(pairs, scaled), window=window)
    shapes = knot_shapes(pairs, count, ramp)
    assert shapes.shape[0] == pairs
    assert 1 <= shapes.shape[1] <= min(count, pairs)
    knots = shapes.argmax(axis=0)
    assert (np.diff(knots) > 0).all()
    assert knots[-1] == pairs - 1
    assert np.array_equal(shapes[knots], np.eye(len(knots)))
    # Between two knots one takes over from the other.
    assert shapes[knots[0] :].sum(axis=1) == pytest.approx(1)


def test_knots_are_where_lambdas_matter() -> None:
    """Of 32 pairs, 0 to 3 make at least 16 turns within 256 tokens, and those from 19 on less than 0.2."""
    ramp = replace(ramp_of(PAIRS), window=256)
    turns = plain(PAIRS).inv_freq() * 256 / (2 * math.pi)
    assert (turns[3] > 16 > turns[4], turns[18] > 0.2 > turns[19]) == (True, True)
    shapes = knot_shapes(PAIRS, 10, ramp)
    assert shapes.argmax(axis=0).tolist() == [5, 7, 9, 11, 13, 15, 17, 19, 31]
    assert not shapes[:4].any()
    assert shapes[4].tolist() == [0.5] + [0] * 8


def test_without_a_ramp_knots_are_even() -> None:
    assert knot_shapes(PAIRS, 8, None).argmax(axis=0).tolist() == [0, 4, 9, 13, 18, 22, 27, 31]


def test_some_pair_can_always_be_moved() -> None:
    """Within a million tokens all 32 pairs make 16 turns and more."""
    shapes = knot_shapes(PAIRS, 10, replace(ramp_of(PAIRS), window=10**6))
    assert shapes.argmax(axis=0).tolist() == [PAIRS - 1]


def test_a_gene_moves_log_lambda_by_its_shape() -> None:
    """By 0.05 where the shape is 1."""
    centre = Candidate(tuple(np.round(1.3 ** np.arange(1, PAIRS + 1), 2)), 0, 1.1)
    space = SearchSpace(PAIRS, 1.0, 1e6, lambda_step=1e-5)  # so fine that no step of the grid shows
    shapes = np.random.default_rng(0).uniform(0, 1, (PAIRS, 3))
    level = KnotLevel(space, centre, shapes, False)
    for gene, sign in product(range(3), (1.0, -1.0)):
        genes = np.zeros(3)
        genes[gene] = sign
        moved = np.log(level.decode(genes).lambdas) - np.log(centre.lambdas)
        assert moved == pytest.approx(sign * 0.05 * shapes[:, gene], abs=1e-5)


def test_lambdas_never_fall_from_a_pair_to_the_next() -> None:
    centre = Candidate(tuple(1.0 + 0.1 * i for i in range(PAIRS)), 0, 1.1)
    level = KnotLevel(WIDE, centre, ALL, False)
    genes = level.start.copy()
    genes[10] = -100.0
    lambdas = level.decode(genes).lambdas
    assert lambdas[10] == lambdas[9] == centre.lambdas[9]
    assert lambdas[11:] == pytest.approx(centre.lambdas[11:], abs=0.006)
    genes[10] = 10.0  # log lambda 0.5 higher: the next ones are lifted to it
    lambdas = level.decode(genes).lambdas
    assert lambdas[10] == pytest.approx(2 * math.exp(0.5), abs=0.006)
    assert lambdas[11:] == pytest.approx(np.maximum(centre.lambdas[11:], 2 * math.exp(0.5)), abs=0.006)


@pytest.mark.parametrize("chooses", [True, False])
def test_the_last_gene_is_the_place_of_n_hat(chooses: bool) -> None:
    space = SearchSpace(PAIRS, 1.0, 100.0, n_hat_choices=(0, 4, 16))
    level = KnotLevel(space, Candidate((2.0,) * PAIRS, 6, 1.0), ALL, chooses)
    assert (level.choices, level.size) == ((3, PAIRS + 1) if chooses else (0, PAIRS))
    assert level.decode(level.start).n_hat == 4  # the nearest choice
    genes = level.start.copy()
    found = []
    for place in (-7.0, 0.4, 1.2, 1.8, 5.0):
        genes[-1] = place
        found.append(level.decode(genes).n_hat)
    assert found == ([0, 0, 4, 16, 16] if chooses else [4] * 5)
