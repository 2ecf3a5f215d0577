"""Racing: who has hardly a chance is scored no further, who has one is; and it does not matter who was faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_search import InProcessPool, Table, scoring

from longrope.data.samples import Sample
from longrope.runs.journal import Journal
from longrope.runs.progress import Progress
from longrope.search import racing
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.search.outlook import Outlook
from longrope.search.racing import LEAST, MOST, Outcome, Race
from longrope.search.scorer import Scorer
from longrope.workers.pool import Failure

BLOCKS = 10
TOKENS = 256 * BLOCKS
SAMPLES = [Sample(f"text {index}", np.full(100 * (index + 1), index)) for index in range(4)]
NUMBER = {sample.digest: index for index, sample in enumerate(SAMPLES)}
RIVAL = Candidate((1.0,), 0, 1.0)
PAST = [Candidate((1 + 0.0002 * step,), 64 + step, 1.0) for step in range(LEAST)]
WORSE, LITTLE, BETTER = (Candidate((value,), 0, 1.0) for value in (1.5, 1.0001, 0.9))
SAME = Candidate((1.0,), 4, 1.0)


def rows(candidate: Candidate, sample: str) -> list[float]:
    """256 tokens a block at a loss of the lambda, up and down with the text, and a little with the candidate."""
    text = np.random.default_rng(NUMBER[sample]).normal(0, 50, BLOCKS)
    own = np.random.default_rng([NUMBER[sample], candidate.n_hat, round(candidate.lambdas[0] * 1e4)])
    return (256 * (1 + candidate.lambdas[0]) + text + own.normal(0, 1, BLOCKS)).tolist()


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
    past: Sequence[Candidate] = PAST,
) -> tuple[Outcome, Race, dict[Candidate, list[int]], int]:
    """A race of ``candidates`` against the rival: how it ended, who was asked on which samples, progress."""
    progress = Counting()
    with scoring(path, Table(blocks, TOKENS, 0.1234567891), progress, fails) as (scorer, pool):
        race = Race(SAMPLES)
        race.run(scorer, [RIVAL, *past], None)
        before = len(pool.asked)
        outcome = race.run(scorer, candidates, RIVAL if rival else None)
    asked: dict[Candidate, list[int]] = {candidate: [] for candidate in candidates}
    for task in pool.asked[before:]:
        asked[task.candidate].append(NUMBER[task.sample])
    return outcome, race, asked, progress.advanced


def scored(candidate: Candidate) -> list[BlockScore]:
    return [BlockScore(tuple(rows(candidate, sample.digest)), TOKENS, 0.0) for sample in SAMPLES]


ORDER = Outlook([scored(each) for each in PAST], scored(RIVAL)).order
"""In which those who race come to the samples."""


def full_score(candidate: Candidate, blocks: Callable[[Candidate, str], Iterable[float]] = rows) -> float:
    total = math.fsum(value for sample in SAMPLES for value in blocks(candidate, sample.digest))
    return math.exp(total / (len(SAMPLES) * TOKENS))


def test_who_has_no_chance_is_scored_no_further(tmp_path: Path) -> None:
    outcome, race, asked, advanced = raced(tmp_path / "journal", [WORSE, BETTER, SAME, LITTLE])
    assert outcome.dropped == {WORSE}
    assert sorted(ORDER) == [0, 1, 2, 3] != ORDER
    assert asked == {WORSE: ORDER[:1], BETTER: ORDER, SAME: ORDER, LITTLE: ORDER}
    first = len(SAMPLES[ORDER[0]].tokens)
    assert (race.saved, race.scored) == (1000 - first, (4 + len(PAST)) * 1000 + first)
    assert advanced == (5 + len(PAST)) * 4, "what is not needed any more is done"
    for each in (BETTER, SAME, LITTLE):
        assert outcome.scores[each] == pytest.approx(full_score(each), rel=1e-12)


def test_the_score_of_who_was_dropped_is_what_is_expected_of_it(tmp_path: Path) -> None:
    outcome, *_ = raced(tmp_path / "noisy", [WORSE])
    assert outcome.scores[WORSE] == pytest.approx(full_score(WORSE), rel=5e-3)
    assert outcome.scores[WORSE] > full_score(RIVAL)


@pytest.mark.parametrize(("known", "dropped"), [(LEAST - 2, False), (LEAST - 1, True)])
def test_nobody_is_dropped_before_enough_is_known(known: int, dropped: bool, tmp_path: Path) -> None:
    """The rival is one of those that were scored in full."""
    outcome, *_ = raced(tmp_path / "journal", [WORSE], past=PAST[:known])
    assert (WORSE in outcome.dropped) == dropped


def test_who_fails_teaches_nothing(tmp_path: Path) -> None:
    outcome, *_ = raced(tmp_path / "journal", [WORSE], fails=lambda task: "bad" if task.candidate == PAST[3] else None)
    assert outcome.dropped == {WORSE}
    outcome, *_ = raced(
        tmp_path / "fewer",
        [WORSE],
        fails=lambda task: "bad" if task.candidate == PAST[3] else None,
        past=PAST[: LEAST - 1],
    )
    assert not outcome.dropped


def test_an_outlook_is_learnt_from_the_last_that_were_scored_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[Sequence[Sequence[BlockScore]]] = []

    class Noted(Outlook):
        def __init__(self, past: Sequence[Sequence[BlockScore]], rival: Sequence[BlockScore]) -> None:
            super().__init__(past, rival)
            learnt.append(past)

    monkeypatch.setattr(racing, "Outlook", Noted)
    many = [Candidate((1 + 0.0001 * step,), 64 + step, 1.0) for step in range(MOST + 5)]
    with scoring(tmp_path / "journal", Table(rows, TOKENS)) as (scorer, _):
        race = Race(SAMPLES)
        race.run(scorer, many, None)
        race.run(scorer, [RIVAL], None)
        race.run(scorer, [WORSE, BETTER], RIVAL)
        race.run(scorer, [LITTLE], BETTER)

    def totals(candidates: Sequence[Candidate]) -> list[float]:
        return [math.fsum(rows(candidate, SAMPLES[0].digest)) for candidate in candidates]

    first, second = ([each[0].total for each in past] for past in learnt)
    assert first == pytest.approx(totals(many[6:]))  # the rival is the last of the MOST, and is left out
    assert second == pytest.approx(totals([*many[7:], RIVAL]))  # not WORSE, which was dropped, nor the new rival


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
    assert not outcome.dropped
    assert race.saved == 0
    assert asked[WORSE] == [0, 1, 2, 3]
    assert outcome.scores == {each: pytest.approx(full_score(each)) for each in (WORSE, BETTER)}
    assert calls == [4 * (1 + len(PAST)), 8]


def test_who_fails_is_scored_no_further(tmp_path: Path) -> None:
    def fails(task: Task) -> str | None:
        bad = {BETTER: ORDER[1], SAME: ORDER[3]}.get(task.candidate)
        return "not finite" if NUMBER[task.sample] == bad else None

    outcome, race, asked, _ = raced(tmp_path / "journal", [BETTER, SAME], fails=fails)
    assert asked == {BETTER: ORDER[:2], SAME: ORDER}
    assert outcome.scores == {BETTER: math.inf, SAME: math.inf}
    left = sum(len(SAMPLES[place].tokens) for place in ORDER[2:])
    assert (race.saved, race.scored) == (left, (3 + len(PAST)) * 1000 - left)
    assert outcome.dropped == {BETTER}, "who failed on the last sample was scored on all"


CHANGING = [Candidate((0.999 + 0.0002 * step,), step, 1.0) for step in range(12)]


def test_a_race_does_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    class Backwards(InProcessPool):
        def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, BlockScore | Failure]]:
            return super().run(list(tasks)[::-1])

    expected, race, *_ = raced(tmp_path / "journal", CHANGING)
    assert 3 < len(expected.dropped) < 11
    other = Race(SAMPLES)
    with Journal.create(tmp_path / "backwards", {}) as journal:
        scorer = Scorer(Backwards(Table(rows, TOKENS, 0.1234567891)), journal, Progress())
        other.run(scorer, [RIVAL, *PAST], None)
        assert other.run(scorer, CHANGING, RIVAL) == expected
    assert other == race


def test_a_race_that_is_run_again_asks_for_nothing_and_counts_the_same(tmp_path: Path) -> None:
    """Times as well, to the last bit: they decide when a budget is spent."""
    outcome, race, *_ = raced(tmp_path / "journal", CHANGING)
    again, counted, asked, advanced = raced(tmp_path / "journal", CHANGING)
    assert (again, counted, advanced) == (outcome, race, (13 + len(PAST)) * 4)
    assert not any(asked.values())
    assert race.seconds > 0.1234 * 4 * (len(PAST) + len(CHANGING) - len(outcome.dropped))
