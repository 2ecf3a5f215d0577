"""The critical pair, against the figures LongRoPE2 published and against its definition."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.exceptions import SettingsError
from longrope.rope.critical_dimension import critical_pair
from longrope.rope.factors import plain_inv_freq


@pytest.mark.parametrize(
    ("rope_theta", "rotary_dim", "train_length", "one_period", "ten_periods"),
    [
        pytest.param(1e4, 96, 2048, 31, 19, id="Phi3-mini"),
        pytest.param(5e5, 128, 8192, 35, 24, id="LLaMA3-8B"),
        pytest.param(1e4, 128, 4096, 46, 30, id="LLaMA2"),
    ],
)
def test_published_figures(rope_theta, rotary_dim, train_length, one_period, ten_periods):
    assert critical_pair(rope_theta, rotary_dim, train_length) == one_period
    assert critical_pair(rope_theta, rotary_dim, train_length, periods=10) == ten_periods


@settings(deadline=None)
@given(st.floats(2.0, 1e7), st.integers(1, 128), st.integers(1, 1 << 20), st.floats(0.1, 100.0))
def test_pairs_before_it_turn_often_enough_and_no_other(rope_theta, pairs, train_length, periods):
    turns = train_length * plain_inv_freq(rope_theta, 2 * pairs) / (2 * math.pi)
    critical = critical_pair(rope_theta, 2 * pairs, train_length, periods)
    assert 0 <= critical <= pairs
    assert (turns[:critical] >= periods * (1 - 1e-9)).all()
    assert (turns[critical:] <= periods * (1 + 1e-9)).all()


@pytest.mark.parametrize("periods", [0, -1, math.nan, math.inf])
def test_senseless_periods_are_refused(periods):
    with pytest.raises(SettingsError):
        critical_pair(1e4, 64, 4096, periods)
