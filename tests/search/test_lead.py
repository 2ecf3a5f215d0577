"""Leads: paired differences of blocks, and how sure they are where neighbouring blocks are correlated."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_search import Table, scoring

from longrope.data.samples import Sample
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.search.lead import block_scores, lead, standard_error


@given(st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=12), min_size=2, max_size=5))
def test_the_standard_error_is_that_of_newey_and_west(differences: list[list[float]]) -> None:
    """Written out: all pairs within a sample, weighed by a triangle over their distance."""
    everything = np.concatenate(differences)
    count, mean, total, weights = len(everything), everything.mean(), 0.0, 0.0
    for each in differences:
        reach = math.isqrt(len(each)) + 1
        for i, a in enumerate(each):
            total += sum(max(0, 1 - abs(i - j) / reach) * (a - mean) * (b - mean) for j, b in enumerate(each))
            weights += sum(max(0, 1 - abs(i - j) / reach) for j in range(len(each)))
    expected = math.sqrt(max(total, 0) / (count * count - weights))
    assert standard_error([np.array(each) for each in differences]) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_with_one_block_a_sample_it_is_the_usual_one() -> None:
    values = np.random.default_rng(0).normal(size=30)
    usual = values.std(ddof=1) / math.sqrt(30)
    assert standard_error([values[index : index + 1] for index in range(30)]) == pytest.approx(usual)


def series(random: np.random.Generator, correlation: float, length: int) -> np.ndarray:
    """AR(1) of variance 1."""
    values = [random.normal()]
    for shock in random.normal(size=length - 1) * math.sqrt(1 - correlation**2):
        values.append(correlation * values[-1] + shock)
    return np.array(values)


@pytest.mark.parametrize(("correlation", "naive_covers"), [(0.0, 0.95), (0.6, 0.7)])
def test_two_standard_errors_cover_the_truth_also_where_blocks_are_correlated(
    correlation: float, naive_covers: float
) -> None:
    random = np.random.default_rng(0)
    covered, naive = [], []
    for _ in range(300):
        samples = [series(random, correlation, 100) for _ in range(5)]
        mean = abs(np.concatenate(samples).mean())
        covered.append(mean < 2 * standard_error(samples))
        naive.append(mean < 2 * np.concatenate(samples).std() / math.sqrt(500))
    assert 0.9 < np.mean(covered) < 0.985
    assert np.mean(naive) == pytest.approx(naive_covers, abs=0.06)


def test_of_few_blocks_the_error_is_right_on_the_average() -> None:
    """Its square, for blocks that are not correlated, where the mean of the same few blocks takes much of it away."""
    random = np.random.default_rng(0)
    squares = [standard_error([random.normal(size=length) for length in (8, 4)]) ** 2 for _ in range(2000)]
    assert np.mean(squares) == pytest.approx(1 / 12, rel=0.05)


def test_correlated_blocks_say_less() -> None:
    random = np.random.default_rng(1)
    loose, tight = (np.mean([standard_error([series(random, c, 100)]) for _ in range(30)]) for c in (0.0, 0.6))
    assert tight > 1.6 * loose


def test_a_lead_is_the_mean_of_paired_differences() -> None:
    one, other = (BlockScore(nll, 10, 0.0) for nll in ((1.0, 2.0, 3.0), (2.0, 4.0, 3.0)))
    found = lead([one], [other])
    assert (found.mean, found.blocks) == (1.0, 3)
    assert found.standard_error == pytest.approx(standard_error([np.array([1.0, 2.0, 0.0])]))
    single = lead([BlockScore((1.0,), 10, 0.0)], [BlockScore((2.0,), 10, 0.0)])
    assert (single.mean, single.standard_error) == (1.0, math.inf)


def test_what_was_not_scored_in_full_is_no_measure(tmp_path: Path) -> None:
    samples = [Sample(f"text {index}", np.full(100, index)) for index in range(3)]
    candidate = Candidate((1.0,), 0, 1.0)

    def rows(_: Candidate, sample: str) -> list[float]:
        return [float(int(sample[:4], 16)), 1.0]

    with scoring(tmp_path / "journal", Table(rows, 100)) as (scorer, _):
        scorer.score(Task(candidate, sample.digest) for sample in samples[:2])
        found = block_scores(scorer, candidate, samples[:2])
        assert [score.nll for score in found] == [tuple(rows(candidate, sample.digest)) for sample in samples[:2]]
        with pytest.raises(KeyError):
            block_scores(scorer, candidate, samples)
