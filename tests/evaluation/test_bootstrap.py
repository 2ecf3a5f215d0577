"""The bootstrap over documents: what its intervals cover, and what it says where nothing can be said."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longrope.evaluation.bootstrap import bootstrap_ratio


def documents(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """NLL and tokens of documents that differ in how hard and how long they are; 2.5 nats a token on average."""
    tokens = rng.integers(200, 2000, count).astype(float)
    return tokens * rng.normal(2.5, 0.4, count), tokens


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    truth, trials, covered, errors, estimates = math.exp(2.5), 400, 0, [], []
    for trial in range(trials):
        nll, tokens = documents(rng, 40)
        found = bootstrap_ratio(nll, tokens, np.exp, resamples=500, seed=trial)
        covered += found.low <= truth <= found.high
        errors.append(found.error)
        estimates.append(math.exp(nll.sum() / tokens.sum()))
    assert 0.90 <= covered / trials <= 0.98  # percentile intervals of 40 documents are a little narrow
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.1)


def test_a_narrower_confidence_covers_less() -> None:
    nll, tokens = documents(np.random.default_rng(1), 30)
    wide, narrow = (bootstrap_ratio(nll, tokens, np.exp, confidence=share) for share in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert wide.error == narrow.error


def test_the_same_seed_gives_the_same_interval() -> None:
    nll, tokens = documents(np.random.default_rng(2), 10)
    assert bootstrap_ratio(nll, tokens, seed=3) == bootstrap_ratio(nll, tokens, seed=3)
    assert bootstrap_ratio(nll, tokens, seed=3) != bootstrap_ratio(nll, tokens, seed=4)


def test_one_document_has_no_spread_to_speak_of() -> None:
    found = bootstrap_ratio([10.0], [4.0])
    assert math.isnan(found.error)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
