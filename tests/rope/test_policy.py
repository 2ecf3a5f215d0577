"""FactorSchedule: which window a length falls into, order and membership of windows, round trips."""

import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_cases import any_factors

from longrope.exceptions import FactorsError
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule, FixedFactors, Window, load_factors

PLAIN = RopeFactors.identity(1e4, 8, 256)


def scaled(value, target_length=2048):
    return PLAIN.replace(lambdas=(value,) * 4, target_length=target_length)


@st.composite
def schedules(draw):
    lengths = sorted(draw(st.sets(st.integers(1, 1 << 22), min_size=1, max_size=5)))
    member = any_factors(pairs=3, rope_theta=1e4, original_length=256)
    return FactorSchedule([Window(length, draw(member)) for length in lengths])


@settings(deadline=None)
@given(schedules())
def test_json_round_trip_is_exact(schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random lambdas are seldom monotone
        assert FactorSchedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


@settings(deadline=None)
@given(schedules(), st.integers(1, 1 << 23))
def test_first_window_that_holds_the_length_is_used(schedule, length):
    holding = [window.factors for window in schedule.windows if window.max_length >= length]
    assert schedule.factors_for(length) is (holding[0] if holding else schedule.windows[-1].factors)


def test_window_holds_its_own_length():
    schedule = FactorSchedule([Window(256, scaled(1)), Window(1024, scaled(4)), Window(2048, scaled(8))])
    picked = [schedule.factors_for(length).lambdas[0] for length in (1, 256, 257, 1024, 1025, 2048, 9999)]
    assert picked == [1, 1, 4, 4, 8, 8, 8]
    assert schedule.describe() == "256, 1k, 2k"
    assert schedule.reference is schedule.windows[-1].factors


def test_fixed_factors_hold_at_every_length():
    policy = FixedFactors(scaled(4))
    assert policy.factors_for(1) is policy.factors_for(1 << 21) is policy.reference is policy.factors


def test_window_is_added_in_order_or_replaced():
    schedule = FactorSchedule([Window(2048, scaled(8))]).with_window(scaled(1, 256)).with_window(scaled(2), 512)
    assert [window.max_length for window in schedule.windows] == [256, 512, 2048]
    again = schedule.with_window(scaled(3), 512)
    assert [window.factors.lambdas[0] for window in again.windows] == [1, 3, 8]
    with pytest.raises(FactorsError, match="at least 1 token"):
        schedule.with_window(scaled(3), 0)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([], "at least one window"),
        ([Window(512, PLAIN), Window(256, PLAIN)], "window 256 follows 512; windows must rise"),
        ([Window(256, PLAIN), Window(256, PLAIN)], "window 256 follows 256; windows must rise"),
        ([Window(0, PLAIN)], "at least 1 token"),
        ([Window(256, PLAIN), Window(512, RopeFactors.identity(1e4, 16, 256))], "rotary_dim 16"),
        ([Window(256, PLAIN), Window(512, RopeFactors.identity(5e5, 8, 256))], "rope_theta 500000"),
        ([Window(256, PLAIN), Window(512, PLAIN.replace(original_length=128))], "disagree on original_length"),
    ],
)
def test_windows_that_do_not_go_together_are_refused(windows, message):
    with pytest.raises(FactorsError, match=message):
        FactorSchedule(windows)


def test_saved_schedule_loads(tmp_path):
    schedule = FactorSchedule([Window(256, scaled(1)), Window(2048, scaled(8))])
    schedule.save(tmp_path / "longrope.json")
    assert load_factors(tmp_path / "longrope.json") == schedule


def entry(**changes):
    return {"max_length": 256, "factors": PLAIN.to_dict(), **changes}


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ("256", "windows must be a list"),
        (None, "windows must be a list"),
        ([], "at least one window"),
        ([entry(), 7], "window 1 needs a whole max_length"),
        ([entry(max_length=True)], "window 0 needs a whole max_length"),
        ([entry(max_length=256.5)], "window 0 needs a whole max_length"),
        ([entry(max_length=float("nan"))], "window 0 needs a whole max_length"),
        ([entry(max_length=-1)], "at least 1 token"),
        ([entry(factors=None)], "window 0: expected a JSON object"),
        ([entry(), entry(max_length=512, factors={**PLAIN.to_dict(), "lambdas": [1, 2]})], "window 1: 2 lambdas given"),
        ([entry(max_length=512), entry()], "window 256 follows 512"),
    ],
)
def test_unusable_schedule_file_says_which_window(tmp_path, windows, message):
    path = tmp_path / "longrope.json"
    path.write_text(json.dumps({"schema_version": 1, "kind": "schedule", "windows": windows}))
    with pytest.raises(FactorsError, match=message) as caught:
        load_factors(path)
    assert str(path) in str(caught.value)


def test_schedule_of_another_schema_version_is_refused(tmp_path):
    path = tmp_path / "longrope.json"
    path.write_text(json.dumps({"schema_version": 99, "kind": "schedule", "windows": [entry()]}))
    with pytest.raises(FactorsError, match="schema_version is 99"):
        load_factors(path)
