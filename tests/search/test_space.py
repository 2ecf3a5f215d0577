"""The grid of the search space: exact decimals, bounds, projection, errors."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.exceptions import SettingsError
from longrope.search.candidate import Candidate
from longrope.search.space import PAPER_N_HAT, SearchSpace

lambdas = st.floats(1e-3, 1e6)


@st.composite
def spaces(draw):
    decimals = draw(st.integers(0, 4))
    low = draw(st.integers(1, 500))
    width = draw(st.integers(0, 2000))
    step = draw(st.integers(1, 50))
    scale = 10**decimals
    choices = draw(st.lists(st.sampled_from(PAPER_N_HAT), min_size=1))
    return SearchSpace(draw(st.integers(1, 6)), low / scale, (low + width) / scale, step / scale, tuple(choices), 1.1)


@st.composite
def spaces_with_candidates(draw):
    space = draw(spaces())
    values = draw(st.lists(lambdas, min_size=space.pairs, max_size=space.pairs))
    return space, Candidate(tuple(values), draw(st.integers(0, 300)), draw(st.sampled_from([1.0, 1.1])))


def test_grid_points_are_the_floats_of_their_decimals():
    space = SearchSpace(4, 1.0, 10.0)
    assert space.last == 900
    assert all(repr(space.value(k)) == repr(float(f"{100 + k}e-2")) for k in range(901))


@pytest.mark.parametrize(
    ("low", "high", "step", "points"),
    [
        (1.0, 10.0, 0.1, 91),  # 10.0 is on the grid although 90 * 0.1 + 1 rounds above it in floats
        (1.0, 1.3, 0.1, 4),
        (1.005, 1.1, 0.01, 10),  # 1.1 itself is off this grid
        (1.0, 1.0, 0.01, 1),
        (1.0, 1.0005, 0.01, 1),
    ],
)
def test_grid_ends_at_the_highest_point_within_the_bounds(low, high, step, points):
    space = SearchSpace(1, low, high, step)
    assert space.last + 1 == points
    assert space.value(0) == low
    assert space.value(space.last) <= high < space.value(points)


@settings(deadline=None, max_examples=60)
@given(spaces(), st.integers(0, 10**9))
def test_index_inverts_value(space, index):
    assert space.index(space.value(index)) == index


@settings(deadline=None, max_examples=60)
@given(spaces_with_candidates())
def test_quantise_moves_each_lambda_to_the_nearest_point_and_nothing_else(case):
    space, candidate = case
    quantised = space.quantise(candidate)
    assert space.quantise(quantised) == quantised
    assert (quantised.n_hat, quantised.attention_factor) == (candidate.n_hat, candidate.attention_factor)
    for before, after in zip(candidate.lambdas, quantised.lambdas, strict=True):
        assert after > 0
        near = space.lambda_step / 2 * (1 + 1e-6) + before * 1e-12
        assert abs(after - before) <= near or after <= space.lambda_step, "only a lambda of 0 is avoided"


def test_quantise_keeps_seeds_outside_the_bounds_and_out_of_order():
    space = SearchSpace(4, 1.0, 4.0)
    seed = Candidate((0.904, 8.0, 2.499, 5.0061), 3, 1.25)
    assert space.quantise(seed) == Candidate((0.9, 8.0, 2.5, 5.01), 3, 1.25)
    assert not space.contains(space.quantise(seed))


def test_quantise_never_yields_a_lambda_of_zero():
    assert SearchSpace(1, 1.0, 4.0).quantise(Candidate((0.001,), 0, 1.0)).lambdas == (0.01,)


@settings(deadline=None, max_examples=60)
@given(spaces_with_candidates())
def test_projection_is_contained_and_leaves_contained_candidates_alone(case):
    space, candidate = case
    projected = space.project(candidate)
    assert space.contains(projected)
    assert space.project(projected) == projected
    assert space.contains(candidate) == (projected == candidate)


def test_projection_is_the_clipped_running_maximum_and_the_nearest_n_hat():
    space = SearchSpace(5, 1.0, 4.0, n_hat_choices=(0, 4, 8), attention_factor=1.2)
    projected = space.project(Candidate((0.5, 2.0, 1.5, 3.004, 9.0), 6, 1.0))
    assert projected == Candidate((1.0, 2.0, 2.0, 3.0, 4.0), 4, 1.2)


def test_contains():
    space = SearchSpace(3, 1.0, 4.0, n_hat_choices=(0, 4), attention_factor=1.2)
    assert space.contains(Candidate((1.0, 1.0, 4.0), 4, 1.2))
    outside = {
        "n_hat": Candidate((1.0, 1.0, 4.0), 8, 1.2),
        "attention factor": Candidate((1.0, 1.0, 4.0), 4, 1.0),
        "order": Candidate((1.0, 2.0, 1.99), 4, 1.2),
        "below": Candidate((0.99, 2.0, 3.0), 4, 1.2),
        "above": Candidate((1.0, 2.0, 4.01), 4, 1.2),
        "off the grid": Candidate((1.0, 2.005, 3.0), 4, 1.2),
        "drifted": Candidate((1.0, 2.0 + 2**-50, 3.0), 4, 1.2),
        "length": Candidate((1.0, 2.0), 4, 1.2),
        "not finite": Candidate((1.0, 2.0, math.inf), 4, 1.2),
    }
    assert [name for name, candidate in outside.items() if space.contains(candidate)] == []


def test_n_hat_choices_are_canonical():
    assert SearchSpace(1, 1.0, 2.0, n_hat_choices=(8, 1, 4, 8, 0)).n_hat_choices == (0, 4, 8)
    assert SearchSpace(1, 1.0, 2.0, n_hat_choices=(1,)).n_hat_choices == (0,)
    assert 1 not in SearchSpace(1, 1.0, 2.0).n_hat_choices


@settings(deadline=None, max_examples=60)
@given(st.floats(0.5, 2.0), st.floats(1.0001, 1.5), st.floats(1e-3, 1e3))
def test_an_attention_factor_that_is_searched_has_four_decimals_within_its_span(
    usual: float, span: float, value: float
) -> None:
    space = SearchSpace(1, 1.0, 4.0, attention_factor=usual, attention_span=span)
    assert space.searches_attention
    nearest = space.nearest_attention(value)
    assert nearest == round(nearest, 4)
    assert usual / span - 5.1e-5 <= nearest <= usual * span + 5.1e-5
    assert space.nearest_attention(nearest) == nearest
    if usual / span <= value <= usual * span:
        assert abs(nearest - value) <= 5.1e-5
    candidate = Candidate((2.0,), 0, value)
    assert space.project(candidate) == Candidate((2.0,), 0, nearest)
    assert space.contains(candidate) == (value == nearest)
    assert space.contains(space.project(candidate))


def test_an_attention_factor_that_is_not_searched_stays_to_the_last_digit() -> None:
    space = SearchSpace(1, 1.0, 4.0, attention_factor=1.08197781)
    assert not space.searches_attention
    assert space.nearest_attention(1.2) == 1.08197781
    assert space.project(Candidate((2.0,), 0, 1.2)).attention_factor == 1.08197781


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"pairs": 0}, "pairs"),
        ({"lambda_min": 0.0}, "lambda_min"),
        ({"lambda_max": math.nan}, "lambda_max"),
        ({"lambda_max": math.inf}, "lambda_max"),
        ({"lambda_max": 0.99}, "below lambda_min"),
        ({"lambda_step": -0.01}, "lambda_step"),
        ({"lambda_step": 1e-9}, "lambda_step"),
        ({"n_hat_choices": ()}, "n_hat"),
        ({"n_hat_choices": (0, -4)}, "n_hat choice -4"),
        ({"n_hat_choices": (0, 2.5)}, "n_hat choice 2.5"),
        ({"attention_factor": 0.0}, "attention_factor"),
        ({"attention_span": 0.99}, "attention_span is 0.99; give at least 1"),
        ({"attention_span": math.inf}, "attention_span"),
    ],
)
def test_unusable_spaces_are_refused_in_one_line(changed, named):
    with pytest.raises(SettingsError, match=named) as caught:
        SearchSpace(**{"pairs": 4, "lambda_min": 1.0, "lambda_max": 4.0, **changed})
    assert "\n" not in str(caught.value)
