"""Racing: who is clearly behind is scored no further, who is not is; and it does not matter who was faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_search import InProcessPool, Table, scoring

from longrope.data.samples import Sample
from longrope.runs.journal import Journal
from longrope.runs.progress import Progress
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.search.racing import Outcome, Race, block_scores, doubt, lead, standard_error
from longrope.search.scorer import Scorer
from longrope.workers.pool import Failure

BLOCKS = 10
TOKENS = 256 * BLOCKS
SAMPLES = [Sample(f"text {index}", np.full(100 * (index + 1), index)) for index in range(4)]
NUMBER = {sample.digest: index for index, sample in enumerate(SAMPLES)}
RIVAL = Candidate((1.0,), 0, 1.0)
WORSE, LITTLE, BETTER = (Candidate((value,), 0, 1.0) for value in (1.5, 1.0001, 0.9))
SAME = Candidate((1.0,), 4, 1.0)


def rows(candidate: Candidate, sample: str) -> list[float]:
    """256 tokens a block at a loss of the lambda, up and down with the text, and a little with the candidate."""
    text = np.random.default_rng(NUMBER[sample]).normal(0, 50, BLOCKS)
    own = np.random.default_rng([NUMBER[sample], candidate.n_hat, round(candidate.lambdas[0] * 1e4)])
    return (256 * (1 + candidate.lambdas[0]) + text + own.normal(0, 1, BLOCKS)).tolist()


def constant(candidate: Candidate, sample: str) -> list[float]:
    """The same difference between candidates in every block."""
    text = np.random.default_rng(NUMBER[sample]).normal(0, 50, BLOCKS)
    return (256 * (1 + candidate.lambdas[0]) + text).tolist()


class Counting(Progress):
    def __init__(self) -> None:
        self.advanced = 0

    def advance(self) -> None:
        self.advanced += 1


def raced(
    path: Path,
    candidates: Sequence[Candidate],
    blocks: Callable[[Candidate, str], Iterable[float]] = rows,
    fails: Callable[[Task], str | None] = lambda task: None,
    rival: bool = True,
) -> tuple[Outcome, Race, dict[Candidate, list[int]], int]:
    """A race of ``candidates`` against the rival: how it ended, who was asked on which samples, progress."""
    progress = Counting()
    with scoring(path, Table(blocks, TOKENS, 0.1234567891), progress, fails) as (scorer, pool):
        race = Race(SAMPLES)
        race.run(scorer, [RIVAL], None)
        before = len(pool.asked)
        outcome = race.run(scorer, candidates, RIVAL if rival else None)
    asked: dict[Candidate, list[int]] = {candidate: [] for candidate in candidates}
    for task in pool.asked[before:]:
        asked[task.candidate].append(NUMBER[task.sample])
    return outcome, race, asked, progress.advanced


def full_score(candidate: Candidate, blocks: Callable[[Candidate, str], Iterable[float]] = rows) -> float:
    total = math.fsum(value for sample in SAMPLES for value in blocks(candidate, sample.digest))
    return math.exp(total / (len(SAMPLES) * TOKENS))


# --- The standard error ---


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
    assert standard_error([np.array(each) for each in differences])[0] == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_with_one_block_a_sample_it_is_the_usual_one() -> None:
    values = np.random.default_rng(0).normal(size=30)
    usual = values.std(ddof=1) / math.sqrt(30)
    assert standard_error([values[index : index + 1] for index in range(30)])[0] == pytest.approx(usual)


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
        covered.append(mean < 2 * standard_error(samples)[0])
        naive.append(mean < 2 * np.concatenate(samples).std() / math.sqrt(500))
    assert 0.9 < np.mean(covered) < 0.985
    assert np.mean(naive) == pytest.approx(naive_covers, abs=0.06)


def test_of_few_blocks_the_error_is_right_on_the_average() -> None:
    """Its square, for blocks that are not correlated, where the mean of the same few blocks takes much of it away."""
    random = np.random.default_rng(0)
    squares = [standard_error([random.normal(size=length) for length in (8, 4)])[0] ** 2 for _ in range(2000)]
    assert np.mean(squares) == pytest.approx(1 / 12, rel=0.05)


def test_degrees_of_freedom_are_those_of_the_scatter_of_the_error() -> None:
    """A chi-square with so many has this variance over its squared mean: 2 / degrees; single blocks have n - 1."""
    random = np.random.default_rng(0)
    for lengths in ((64,), (16, 16, 16, 16), (1,) * 20):
        found = [standard_error([random.normal(size=length) for length in lengths]) for _ in range(3000)]
        squares = np.array([error for error, _ in found]) ** 2
        assert found[0][1] == pytest.approx(2 * squares.mean() ** 2 / squares.var(), rel=0.2)
    assert standard_error([random.normal(size=1) for _ in range(20)])[1] == 19


def test_correlated_blocks_say_less() -> None:
    random = np.random.default_rng(1)
    loose, tight = (np.mean([standard_error([series(random, c, 100)])[0] for _ in range(30)]) for c in (0.0, 0.6))
    assert tight > 1.6 * loose


def test_a_lead_is_the_mean_of_paired_differences() -> None:
    one, other = (BlockScore(nll, 10, 0.0) for nll in ((1.0, 2.0, 3.0), (2.0, 4.0, 3.0)))
    found = lead([one], [other])
    assert (found.mean, found.blocks) == (1.0, 3)
    assert found.standard_error == pytest.approx(standard_error([np.array([1.0, 2.0, 0.0])])[0])
    assert lead([other, one], [one]).mean == -1.0  # on those that both were scored on
    single = lead([BlockScore((1.0,), 10, 0.0)], [BlockScore((2.0,), 10, 0.0)])
    assert (single.mean, single.standard_error) == (1.0, math.inf)


# --- Races ---


def test_who_is_clearly_behind_is_scored_no_further(tmp_path: Path) -> None:
    outcome, race, asked, advanced = raced(tmp_path / "journal", [WORSE, BETTER, SAME, LITTLE])
    assert set(outcome.errors) == {WORSE}
    assert asked == {WORSE: [0], BETTER: [0, 1, 2, 3], SAME: [0, 1, 2, 3], LITTLE: [0, 1, 2, 3]}
    assert (race.saved, race.scored) == (200 + 300 + 400, 4 * 1000 + 100)
    assert advanced == 5 * 4, "what is not needed any more is done"
    for each in (BETTER, SAME, LITTLE):
        assert outcome.scores[each] == pytest.approx(full_score(each), rel=1e-12)


def test_an_estimate_adds_what_was_lost_so_far_for_every_token(tmp_path: Path) -> None:
    outcome, *_ = raced(tmp_path / "exact", [WORSE], constant)
    assert set(outcome.errors) == {WORSE}
    assert outcome.scores[WORSE] == pytest.approx(full_score(WORSE, constant), rel=1e-9)
    outcome, *_ = raced(tmp_path / "noisy", [WORSE])
    assert outcome.scores[WORSE] == pytest.approx(full_score(WORSE), rel=5e-3)
    assert outcome.scores[WORSE] > full_score(RIVAL)


def test_an_estimate_says_how_far_it_may_be_from_the_score_in_full(tmp_path: Path) -> None:
    """On the first of four samples, of which three are unknown: the truth is within two errors 19 times in 20."""
    within = []
    for seed in range(120):

        def blocks(candidate: Candidate, sample: str, seed: int = seed) -> list[float]:
            random = np.random.default_rng([seed, NUMBER[sample]])
            return (100 + (candidate != RIVAL) * random.normal(30, 20, BLOCKS)).tolist()

        outcome, *_ = raced(tmp_path / f"{seed}", [WORSE], blocks)
        if WORSE in outcome.errors:
            off = abs(math.log(outcome.scores[WORSE]) - math.log(full_score(WORSE, blocks)))
            within.append(off < 2 * outcome.errors[WORSE])
    assert len(within) > 100
    assert 0.88 < np.mean(within) < 0.99


def test_a_candidate_that_is_dropped_has_an_error_above_zero(tmp_path: Path) -> None:
    outcome, *_ = raced(tmp_path / "exact", [WORSE], constant)
    assert 0 < outcome.errors[WORSE] < 1e-5


@pytest.mark.parametrize(("errors", "dropped"), [(0.97, False), (1.03, True)])
def test_the_line_is_drawn_where_chance_ends(errors: float, dropped: bool, tmp_path: Path) -> None:
    """On the first sample; on the others the candidate is as good as its rival."""
    noise = np.random.default_rng(5).normal(size=BLOCKS)
    error, freedom = standard_error([noise])
    behind = noise - noise.mean() + errors * doubt(freedom) * error

    def blocks(candidate: Candidate, sample: str) -> list[float]:
        other = candidate != RIVAL and NUMBER[sample] == 0
        return (100 + behind * other).tolist()

    outcome, *_ = raced(tmp_path / "journal", [SAME], blocks)
    assert (SAME in outcome.errors) == dropped


def test_nobody_is_dropped_without_a_rival_and_all_is_scored_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    score = Scorer.score

    def counted(self: Scorer, tasks: Iterable[Task]) -> Any:
        tasks = list(tasks)
        calls.append(len(tasks))
        return score(self, tasks)

    monkeypatch.setattr(Scorer, "score", counted)
    outcome, race, asked, _ = raced(tmp_path / "journal", [WORSE, BETTER], rival=False)
    assert not outcome.errors
    assert race.saved == 0
    assert asked[WORSE] == [0, 1, 2, 3]
    assert outcome.scores == {each: pytest.approx(full_score(each)) for each in (WORSE, BETTER)}
    assert calls == [4, 8]


def test_doubt_is_the_quantile_of_student_and_of_the_normal_in_the_end() -> None:
    """Tables: 3.078 with one degree of freedom, 1.383 with nine, 1.282 with ever so many."""
    assert [round(doubt(freedom), 3) for freedom in (1, 9)] == [3.078, 1.383]
    assert doubt(100_000) == pytest.approx(1.282, abs=1e-3)


def test_one_block_drops_nobody(tmp_path: Path) -> None:
    """With one block a sample it takes the second one, and differences that agree."""
    outcome, _, asked, _ = raced(tmp_path / "journal", [WORSE], lambda *task: rows(*task)[:1])
    assert set(outcome.errors) == {WORSE}
    assert asked[WORSE] == [0, 1]


def test_who_fails_is_scored_no_further(tmp_path: Path) -> None:
    def fails(task: Task) -> str | None:
        bad = {BETTER: 1, SAME: 3}.get(task.candidate)
        return "not finite" if NUMBER[task.sample] == bad else None

    outcome, race, asked, _ = raced(tmp_path / "journal", [BETTER, SAME], fails=fails)
    assert asked == {BETTER: [0, 1], SAME: [0, 1, 2, 3]}
    assert outcome.scores == {BETTER: math.inf, SAME: math.inf}
    assert race.saved == 300 + 400


CHANGING = [Candidate((1 + 0.0005 * step,), step, 1.0) for step in range(12)]


def test_a_race_does_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    class Backwards(InProcessPool):
        def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, BlockScore | Failure]]:
            return super().run(list(tasks)[::-1])

    expected, race, *_ = raced(tmp_path / "journal", CHANGING)
    assert 3 < len(expected.errors) < 11
    other = Race(SAMPLES)
    with Journal.create(tmp_path / "backwards", {}) as journal:
        scorer = Scorer(Backwards(Table(rows, TOKENS, 0.1234567891)), journal, Progress())
        other.run(scorer, [RIVAL], None)
        assert other.run(scorer, CHANGING, RIVAL) == expected
    assert other == race


def test_a_race_that_is_run_again_asks_for_nothing_and_counts_the_same(tmp_path: Path) -> None:
    """Times as well, to the last bit: they decide when a budget is spent."""
    outcome, race, *_ = raced(tmp_path / "journal", CHANGING)
    again, counted, asked, advanced = raced(tmp_path / "journal", CHANGING)
    assert (again, counted, advanced) == (outcome, race, 13 * 4)
    assert not any(asked.values())
    assert race.seconds > 0.1234 * 4 * (len(CHANGING) - len(outcome.errors))


def test_what_was_not_scored_in_full_is_no_measure(tmp_path: Path) -> None:
    with scoring(tmp_path / "journal", Table(rows, TOKENS)) as (scorer, _):
        Race(SAMPLES[:3]).run(scorer, [RIVAL], None)
        assert [score.nll for score in block_scores(scorer, RIVAL, SAMPLES[:3])] == [
            tuple(rows(RIVAL, sample.digest)) for sample in SAMPLES[:3]
        ]
        with pytest.raises(KeyError):
            block_scores(scorer, RIVAL, SAMPLES)
