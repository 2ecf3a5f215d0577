"""Scorer: every pair is evaluated once in the life of a journal, and written down as soon as it is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.data.samples import Sample
from longrope.runs.journal import Journal, read_journal
from longrope.runs.progress import Progress
from longrope.search.candidate import Candidate
from longrope.search.evaluation import Batch, BlockScore, Task
from longrope.search.scorer import Scorer
from longrope.workers.pool import EvaluationPool, Failure

SAMPLES = [Sample(f"text {index}", np.arange(index, index + 8)) for index in range(3)]
CANDIDATES = [Candidate((1.0, value), n_hat, 1.1) for value in (1.0, 1.5, 2.0) for n_hat in (0, 4)]


def score(task: Task) -> BlockScore:
    """Blocks that differ for every task, with more tokens the later the sample; seconds as clocks give them."""
    index = next(i for i, sample in enumerate(SAMPLES) if sample.digest == task.sample)
    nll = 0.1 * task.candidate.lambdas[1] + task.candidate.n_hat / 7 + index / 3
    return BlockScore((nll, nll / 3), 10 * (index + 1), 0.123456789)


class ScriptedPool(EvaluationPool):
    """Answers by a function, in an order of its own; a batch as a whole fails where ``together`` says why."""

    def __init__(
        self,
        answer: Callable[[Task], BlockScore | Failure] = score,
        order: Callable[[list[Task]], list[Task]] = list,
        before: Callable[[], None] = lambda: None,
        together: Callable[[Batch], str | None] = lambda batch: None,
    ) -> None:
        self.workers = 1
        self.asked: list[Any] = []
        self._answer, self._order, self._before, self._together = answer, order, before, together

    def start(self) -> None:
        pass

    def run(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for task in self._order(list(tasks)):
            self._before()
            self.asked.append(task)
            if isinstance(task, Task):
                yield task, self._answer(task)
                continue
            reason = self._together(task)
            rows = (self._answer(Task(candidate, task.sample)) for candidate in task.candidates)
            yield task, Failure(reason) if reason else tuple(rows)

    def close(self) -> None:
        pass


class Counting(Progress):
    def __init__(self) -> None:
        self.advanced = 0
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self) -> None:
        self.advanced += 1


def all_tasks() -> list[Task]:
    return [Task(candidate, sample.digest) for candidate in CANDIDATES for sample in SAMPLES]


def test_perplexity_is_that_of_all_tokens_together(tmp_path: Path):
    with Journal.create(tmp_path / "journal", {}) as journal:
        scorer = Scorer(ScriptedPool(), journal, Progress())
        candidate = CANDIDATES[3]
        scores = [score(Task(candidate, sample.digest)) for sample in SAMPLES]
        expected = math.exp(sum(sum(s.nll) for s in scores) / (10 + 20 + 30))
        assert scorer.perplexities([candidate], SAMPLES) == {candidate: pytest.approx(expected, rel=1e-12)}
        assert scorer.evaluated == 3
        assert scorer.model_seconds == pytest.approx(3 * 0.123456789)


def test_nothing_is_evaluated_twice(tmp_path: Path):
    pool, progress = ScriptedPool(), Counting()
    with Journal.create(tmp_path / "journal", {}) as journal:
        scorer = Scorer(pool, journal, progress)
        first = scorer.score([*all_tasks()[:5], *all_tasks()[:5]])
        assert pool.asked == all_tasks()[:5]
        again = scorer.score(all_tasks()[2:8])
        assert pool.asked == all_tasks()[:8]
        assert {task: again[task] for task in all_tasks()[2:5]} == {task: first[task] for task in all_tasks()[2:5]}
        assert scorer.evaluated == 8
    assert progress.advanced == 5 + 6  # what is known is progress as well


def test_a_journal_answers_for_the_process_that_wrote_it(tmp_path: Path):
    def fails_at_one(task: Task) -> BlockScore | Failure:
        return Failure("too hot") if task == all_tasks()[1] else score(task)

    with Journal.create(tmp_path / "journal", {}) as journal:
        before = Scorer(ScriptedPool(fails_at_one), journal, Progress()).perplexities(CANDIDATES, SAMPLES)
    pool, progress = ScriptedPool(), Counting()
    with Journal.resume(tmp_path / "journal", {}) as journal:
        scorer = Scorer(pool, journal, progress)
        assert scorer.perplexities(CANDIDATES, SAMPLES) == before
        assert scorer.failures() == [Failure("too hot")]
        assert scorer.evaluated == 0
    assert pool.asked == []
    assert progress.advanced == len(all_tasks())


def test_each_result_is_in_the_file_before_the_next_is_taken(tmp_path: Path):
    path = tmp_path / "journal"
    written = []
    pool = ScriptedPool(before=lambda: written.append(len(read_journal(path)[1])))
    with Journal.create(path, {}) as journal:
        Scorer(pool, journal, Progress()).score(all_tasks())
    assert written == list(range(len(all_tasks())))


def test_an_event_says_all_of_an_evaluation(tmp_path: Path):
    with Journal.create(tmp_path / "journal", {}) as journal:
        Scorer(ScriptedPool(), journal, Progress()).score(all_tasks()[:1])
    [event] = read_journal(tmp_path / "journal")[1]
    task = all_tasks()[0]
    assert event == {
        "kind": "evaluation",
        "candidate": {"lambdas": [1.0, 1.0], "n_hat": 0, "attention_factor": 1.1},
        "sample": task.sample,
        "nll": list(score(task).nll),
        "tokens": 10,
        "seconds": 0.123457,
    }


def test_a_candidate_that_fails_on_one_sample_is_invalid_and_its_reason_written_down(tmp_path: Path):
    bad = CANDIDATES[2]

    def answer(task: Task) -> BlockScore | Failure:
        return Failure("out of memory") if task == Task(bad, SAMPLES[1].digest) else score(task)

    with Journal.create(tmp_path / "journal", {}) as journal:
        scorer = Scorer(ScriptedPool(answer), journal, Progress())
        scores = scorer.perplexities(CANDIDATES, SAMPLES)
        assert {candidate for candidate, value in scores.items() if value == math.inf} == {bad}
        assert scorer.failures() == [Failure("out of memory")]
    failures = [event for event in read_journal(tmp_path / "journal")[1] if event["kind"] == "failure"]
    assert failures == [
        {"kind": "failure", "candidate": bad.to_dict(), "sample": SAMPLES[1].digest, "reason": "out of memory"}
    ]


def test_a_run_that_is_cut_off_keeps_what_it_has(tmp_path: Path):
    def cut_off() -> None:
        if len(pool.asked) == 4:
            raise KeyboardInterrupt

    pool = ScriptedPool(before=cut_off)
    with Journal.create(tmp_path / "journal", {}) as journal, pytest.raises(KeyboardInterrupt):
        Scorer(pool, journal, Progress()).score(all_tasks())
    rest = ScriptedPool()
    with Journal.resume(tmp_path / "journal", {}) as journal:
        assert Scorer(rest, journal, Progress()).score(all_tasks()) == {t: _rounded(score(t)) for t in all_tasks()}
    assert rest.asked == all_tasks()[4:]


@settings(max_examples=15)
@given(order=st.permutations(range(len(CANDIDATES) * len(SAMPLES))))
def test_the_order_of_arrival_does_not_matter(tmp_path_factory: pytest.TempPathFactory, order: list[int]):
    def scores(arrange: Callable[[list[Task]], list[Task]]) -> dict[Candidate, float]:
        with Journal.create(tmp_path_factory.mktemp("run") / "journal", {}) as journal:
            return Scorer(ScriptedPool(order=arrange), journal, Progress()).perplexities(CANDIDATES, SAMPLES)

    assert scores(lambda tasks: [tasks[index] for index in order]) == scores(list)


def test_what_is_known_is_given_back_and_what_is_skipped_is_progress(tmp_path: Path):
    progress = Counting()
    with Journal.create(tmp_path / "journal", {}) as journal:
        scorer = Scorer(ScriptedPool(), journal, progress)
        task, other = all_tasks()[:2]
        scorer.score([task])
        assert scorer.known(task) == score(task)
        with pytest.raises(KeyError):
            scorer.known(other)
        scorer.skip(3)
    assert progress.advanced == 1 + 3
    assert len(read_journal(tmp_path / "journal")[1]) == 1


# --- Batches ---


def batches_of(pool: ScriptedPool) -> list[tuple[int, list[int]]]:
    """Of each batch that a pool was given the sample and the candidates, by their numbers."""
    digests = [sample.digest for sample in SAMPLES]
    assert all(isinstance(task, Batch) for task in pool.asked)
    return [(digests.index(b.sample), [CANDIDATES.index(c) for c in b.candidates]) for b in pool.asked]


def test_a_batch_has_one_sample_and_always_as_many_rows(tmp_path: Path):
    pool, progress = ScriptedPool(), Counting()
    with Journal.create(tmp_path / "journal", {}) as journal:
        scorer = Scorer(pool, journal, progress, batch=4)
        assert scorer.score(all_tasks()) == {task: score(task) for task in all_tasks()}
        assert (scorer.batch, scorer.evaluated, progress.advanced) == (4, 18, 18)
    assert batches_of(pool) == [
        *((sample, [0, 1, 2, 3]) for sample in range(3)),
        *((sample, [4, 5, 5, 5]) for sample in range(3)),
    ]
    events = read_journal(tmp_path / "journal")[1]
    assert len({(str(event["candidate"]), event["sample"]) for event in events}) == len(events) == 18


@pytest.mark.parametrize("batch", [1, 2])
def test_what_takes_longest_is_begun_first(batch: int, tmp_path: Path):
    pool = ScriptedPool()
    lengths = {sample.digest: length for sample, length in zip(SAMPLES, (128, 512, 128), strict=True)}
    with Journal.create(tmp_path / "journal", {}) as journal:
        Scorer(pool, journal, Progress(), batch, lengths).score(all_tasks())
    first = len(CANDIDATES) // batch
    assert {task.sample for task in pool.asked[:first]} == {SAMPLES[1].digest}
    rest = [task.sample for task in pool.asked[first:]]  # of one length: in the order given
    assert rest == [SAMPLES[0].digest, SAMPLES[2].digest] * first


@given(known=st.integers(0, 18))
@settings(max_examples=19)
def test_a_resumed_run_forms_the_batches_of_the_first(tmp_path_factory: pytest.TempPathFactory, known: int):
    """Also those that it knows a part of: companions and rows stay, and what was known stands."""

    def rounds(scorer: Scorer) -> list[dict[Task, BlockScore | Failure]]:
        return [scorer.score(all_tasks()[:1]), scorer.score(all_tasks()[:7]), scorer.score(all_tasks())]

    path = tmp_path_factory.mktemp("run") / "journal"
    whole, rest = ScriptedPool(), ScriptedPool()
    with Journal.create(path, {}) as journal:
        expected = rounds(Scorer(whole, journal, Progress(), batch=4))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: 1 + known]))
    with Journal.resume(path, {}) as journal:
        found = rounds(Scorer(rest, journal, Progress(), batch=4))
    assert rest.asked == whole.asked[len(whole.asked) - len(rest.asked) :]
    assert (not rest.asked) == (known == 18)
    assert path.read_bytes() == b"".join(lines)
    for task, result in expected[-1].items():
        assert isinstance(result, BlockScore)
        assert found[-1][task] == _rounded(result)


def test_a_row_that_fails_is_one_candidate_that_failed(tmp_path: Path):
    bad = all_tasks()[4]
    pool = ScriptedPool(lambda task: Failure("not finite") if task == bad else score(task))
    with Journal.create(tmp_path / "journal", {}) as journal:
        results = Scorer(pool, journal, Progress(), batch=4).score(all_tasks())
    assert results == {task: Failure("not finite") if task == bad else score(task) for task in all_tasks()}
    assert len(pool.asked) == 6


def test_candidates_that_fail_together_are_scored_one_by_one(tmp_path: Path):
    bad = Task(CANDIDATES[1], SAMPLES[2].digest)
    pool = ScriptedPool(
        lambda task: Failure("out of memory") if task == bad else score(task),
        together=lambda batch: "out of memory" if bad.candidate in batch.candidates else None,
    )
    progress = Counting()
    with Journal.create(tmp_path / "journal", {}) as journal:
        scorer = Scorer(pool, journal, progress, batch=4)
        assert scorer.score(all_tasks()) == {
            task: Failure("out of memory") if task == bad else score(task) for task in all_tasks()
        }
    alone = [task for task in pool.asked if isinstance(task, Task)]
    assert alone == [Task(candidate, sample.digest) for sample in SAMPLES for candidate in CANDIDATES[:4]]
    assert progress.advanced == 18
    assert len(progress.notes) == 3
    assert "failed together (out of memory), so they are scored one by one" in progress.notes[0]


def _rounded(result: BlockScore) -> BlockScore:
    """Only the time loses digits on its way through the file, and only what came from there."""
    return BlockScore(result.nll, result.tokens, pytest.approx(result.seconds, abs=1e-6))
