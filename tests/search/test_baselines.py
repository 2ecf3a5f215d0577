"""Baselines: the published methods for a plain model, and their continuation for one that is already scaled."""

from __future__ import annotations

import pytest

from longrope.model.architectures import ARCHITECTURES
from longrope.model.rope_config import ModelRope
from longrope.rope.attention_factor import yarn as yarn_attention_factor
from longrope.rope.factors import RopeFactors
from longrope.rope.methods import linear, ntk, yarn
from longrope.rope.policy import FactorSchedule, FixedFactors, RopePolicy, Window
from longrope.search.baselines import Baseline, both_attention_factors, published_baselines
from longrope.search.candidate import Candidate

PLAIN = RopeFactors.identity(10000.0, 16, 64)
SHORT = PLAIN.replace(lambdas=(1.0,) * 7 + (1.1,), attention_factor=1.05)
LONG = PLAIN.replace(lambdas=(1.0, 1.1, 1.2, 1.5, 1.7, 1.9, 2.0, 2.0), target_length=128, attention_factor=1.05)


def model(policy: RopePolicy, window: int) -> ModelRope:
    return ModelRope(ARCHITECTURES["llama"], policy, window)


def by_name(rope: ModelRope, target: int) -> dict[str, Baseline]:
    return {baseline.name: baseline for baseline in published_baselines(rope, target)}


def test_a_plain_model_has_the_published_methods_in_the_order_of_the_table():
    baselines = by_name(model(FixedFactors(PLAIN), 64), 512)
    assert list(baselines) == ["none", "pi", "ntk", "dynamic-ntk", "yarn"]
    for name, factors in (
        ("none", PLAIN),
        ("pi", linear(PLAIN, 512)),
        ("ntk", ntk(PLAIN, 512)),
        ("dynamic-ntk", ntk(PLAIN, 512)),
        ("yarn", yarn(PLAIN, 512)),
    ):
        assert baselines[name].at(512) == Candidate.from_factors(factors), name
    assert baselines["yarn"].at(512).attention_factor == yarn_attention_factor(8.0)


def test_dynamic_ntk_follows_the_length_and_the_others_do_not():
    baselines = by_name(model(FixedFactors(PLAIN), 64), 512)
    assert baselines["dynamic-ntk"].at(64) == Candidate.from_factors(PLAIN)
    assert baselines["dynamic-ntk"].at(256) == Candidate.from_factors(ntk(PLAIN, 256))
    for name in ("none", "pi", "ntk", "yarn"):
        assert baselines[name].at(64) == baselines[name].at(512), name


def test_a_scaled_model_is_extended_from_its_present_factors():
    schedule = FactorSchedule((Window(32, SHORT), Window(128, LONG)))
    baselines = by_name(model(schedule, 128), 256)
    assert baselines["none"].at(32) == Candidate.from_factors(SHORT)
    assert baselines["none"].at(256) == Candidate.from_factors(LONG)
    doubled = tuple(2 * value for value in LONG.lambdas)
    assert baselines["pi"].at(256).lambdas == pytest.approx(doubled)
    assert baselines["pi"].at(256).attention_factor == 1.05
    assert baselines["dynamic-ntk"].at(256) == baselines["ntk"].at(256)
    assert baselines["ntk"].at(256).lambdas[-1] == pytest.approx(2 * LONG.lambdas[-1])
    # The entropy that YaRN corrects grew over the whole way from 64 to 256.
    assert baselines["yarn"].at(256).attention_factor == yarn_attention_factor(4.0)
    assert baselines["yarn"].at(256).lambdas[0] == LONG.lambdas[0]


def test_an_attention_factor_replaces_the_published_one_at_every_length():
    baseline = by_name(model(FixedFactors(PLAIN), 64), 512)["dynamic-ntk"].with_attention_factor(1.2)
    assert [baseline.at(length).attention_factor for length in (64, 512)] == [1.2, 1.2]
    assert baseline.at(512).lambdas == ntk(PLAIN, 512).lambdas
    assert baseline.name == "dynamic-ntk"


def test_each_baseline_comes_at_its_own_attention_factor_and_at_that_of_the_search():
    baselines = published_baselines(model(FixedFactors(PLAIN), 64), 512)
    rows = [(row.name, row.at(512).attention_factor) for row in both_attention_factors(baselines, 1.3)]
    own = yarn_attention_factor(8.0)
    assert rows == [
        ("none", 1.0), ("none", 1.3), ("pi", 1.0), ("pi", 1.3), ("ntk", 1.0), ("ntk", 1.3),
        ("dynamic-ntk", 1.0), ("dynamic-ntk", 1.3), ("yarn", own), ("yarn", 1.3),
    ]  # fmt: skip


def test_a_baseline_whose_attention_factor_is_that_of_the_search_comes_once():
    baselines = published_baselines(model(FixedFactors(PLAIN), 64), 512)
    names = [row.name for row in both_attention_factors(baselines, yarn_attention_factor(8.0))]
    assert names.count("yarn") == 1
    assert names.count("none") == 2
