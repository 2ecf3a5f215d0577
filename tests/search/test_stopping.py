"""When a search ends: by its time, or when rounds bring nothing clearly better."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tiny_search import Table, scoring

from longrope.data.samples import Sample
from longrope.exceptions import SettingsError
from longrope.search.candidate import Candidate
from longrope.search.racing import Race
from longrope.search.scorer import Scorer
from longrope.search.stopping import Budget, Stopping

BLOCKS = 12
SAMPLES = [Sample(f"text {index}", np.arange(index, index + 8)) for index in range(2)]
BETTER = [Candidate((gain,), 0, 1.0) for gain in (0.0, 0.05, 0.12, 0.3, 0.6, 4.0)]
"""By how much the mean of their blocks is lower than that of the first; it is known to 0.12 to 0.26."""


def blocks(candidate: Candidate, sample: str) -> list[float]:
    noise = np.random.default_rng(BETTER.index(candidate)).normal(0, 0.7, size=BLOCKS)
    return (100 - candidate.lambdas[0] + noise - noise.mean()).tolist()


def reasons(path: Path, budget: Budget, bests: list[Candidate]) -> list[str | None]:
    """What is said after each round with these best candidates so far."""
    stopping = Stopping(budget, SAMPLES)
    with scoring(path, Table(blocks, 256 * BLOCKS)) as (scorer, _):
        Race(SAMPLES).run(scorer, list(dict.fromkeys(bests)), None)
        return [stopping.reason(scorer, best, 0.0) for best in bests]


def test_patience_ends_after_rounds_without_a_better_candidate(tmp_path: Path) -> None:
    said = reasons(tmp_path / "journal", Budget(patience=3), [BETTER[0]] * 4)
    assert said == [None, None, None, "nothing clearly better was found in 3 rounds"]


@pytest.mark.parametrize(("gain", "ends"), [(1, True), (2, True), (3, False), (5, False)])
def test_a_gain_below_its_standard_error_is_none(gain: int, ends: bool, tmp_path: Path) -> None:
    bests = [BETTER[0], BETTER[0], BETTER[gain]]
    assert (reasons(tmp_path / "journal", Budget(patience=2), bests)[-1] is not None) == ends


def test_small_gains_add_up_to_a_clear_one(tmp_path: Path) -> None:
    """The measure stays the last one that was clearly better: it is not moved by what is not."""
    bests = [BETTER[0], BETTER[2], BETTER[3], BETTER[3], BETTER[3]]
    said = reasons(tmp_path / "journal", Budget(patience=2), bests)
    assert [reason is not None for reason in said] == [False] * 4 + [True]


def test_there_is_no_end_without_limits(tmp_path: Path) -> None:
    assert set(reasons(tmp_path / "journal", Budget(), [BETTER[0]] * 50)) == {None}


@pytest.mark.parametrize(("gpus", "seconds"), [(1.0, 1800.0), (4.0, 450.0), (0.5, 1800.0), (0.0, 1800.0)])
def test_hours_count_the_gpus_of_an_evaluator_and_at_least_one(gpus: float, seconds: float, tmp_path: Path) -> None:
    stopping = Stopping(Budget(hours=0.5, gpus_per_worker=gpus), SAMPLES)
    with scoring(tmp_path / "journal", Table(blocks, 256 * BLOCKS)) as (scorer, _):
        assert stopping.reason(scorer, BETTER[0], math.nextafter(seconds, 0) - 1e-9) is None
        assert stopping.reason(scorer, BETTER[0], seconds) == "0.5 GPU-hours are spent, of 0.5"


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"hours": 0.0}, "max-gpu-hours is 0.0; give a number above 0"),
        ({"hours": -1.0}, "max-gpu-hours is -1.0; give a number above 0"),
        ({"hours": math.nan}, "max-gpu-hours is nan; give a number above 0"),
        ({"patience": 0}, "patience is 0; give at least 1 round"),
    ],
)
def test_limits_that_cannot_be_used_are_refused(limits: dict[str, float], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Budget(**limits)
    assert str(refused.value) == said


# --- What a scorer says of its journal ---


def test_a_decision_is_journaled_once(tmp_path: Path) -> None:
    event = {"kind": "stop", "round": 3, "reason": "0.5 GPU-hours are spent, of 0.5"}
    for _ in range(2):
        with scoring(tmp_path / "journal", Table(blocks, 256 * BLOCKS)) as (scorer, _):
            assert isinstance(scorer, Scorer)
            scorer.record(event)
            scorer.record(event)
    lines = (tmp_path / "journal").read_text().splitlines()
    assert len(lines) == 2, "a header and the decision"
    with scoring(tmp_path / "journal", Table(blocks, 256 * BLOCKS)) as (scorer, _):
        scorer.record({**event, "round": 4})
    assert len((tmp_path / "journal").read_text().splitlines()) == 3
