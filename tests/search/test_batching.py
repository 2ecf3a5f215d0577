"""Batches: a candidate's score is its own whatever shares the pass, and a run keeps the number of rows it began with.

Where bits are compared they are those of a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_search import coarse_to_fine, eager_races, search_in_process, settings

from longrope.data.samples import Sample, SampleSet
from longrope.model.architectures import ARCHITECTURES
from longrope.model.rope_config import ModelRope
from longrope.model.score import score_blocks
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FixedFactors
from longrope.runs.journal import Journal, read_journal
from longrope.runs.model import open_model
from longrope.runs.progress import Progress
from longrope.search import batching
from longrope.search.batching import BatchProbe, settle_batch, time_batches, worthwhile_rows
from longrope.search.candidate import Candidate
from longrope.search.evaluation import Batch, BlockScore, Task
from longrope.search.evaluator import ModelEvaluator
from longrope.search.run import open_scorer
from longrope.search.scorer import Scorer
from longrope.search.search import SearchReport, search
from longrope.search.settings import DataSettings, SearchSettings
from longrope.search.solve import Problem, predicted_cost
from longrope.search.space import SearchSpace
from longrope.workers.pool import EvaluationPool, Failure
from longrope.workers.settings import ExecutionSettings
from longrope.workers.worker import Raised, Worker

JOURNAL = "evaluations.jsonl"
SAMPLE = Sample("text", np.random.default_rng(0).integers(3, 128, 300))
OTHERS = [Candidate((1.0 + 0.3 * i,) * 8, 4 * i, 1.0 + 0.05 * i) for i in range(1, 8)]
MINE = Candidate((1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0), 8, 1.1)
OVERFLOWS = Candidate((1.0,) * 8, 0, 1e30)


def evaluator(model: Any) -> ModelEvaluator:
    return ModelEvaluator(model, RopeFactors.identity(10000.0, 16, 64), {SAMPLE.digest: SAMPLE})


def together(scoring: ModelEvaluator, *candidates: Candidate) -> tuple[BlockScore | Failure, ...]:
    return scoring.evaluate(Batch(candidates, SAMPLE.digest))


# --- Numbers ---


def test_only_blocks_in_which_something_counts_have_a_score(make_tiny_model: Callable[..., Any]) -> None:
    """Of 300 tokens the last 30 count, all in the second block; the first would be 0 under every candidate."""
    model = make_tiny_model()
    answer = Sample("text", SAMPLE.tokens, 270)
    scoring = ModelEvaluator(model, RopeFactors.identity(10000.0, 16, 64), {answer.digest: answer})
    found = scoring.evaluate(Task(MINE, answer.digest))
    factors = MINE.to_factors(RopeFactors.identity(10000.0, 16, 64), 300)
    expected = score_blocks(model, SAMPLE.tokens, [factors], first=270)
    assert (len(found.nll), found.tokens) == (1, 30)
    assert found.nll[0] == pytest.approx(expected[0].sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", [0, 3])
def test_a_score_is_the_same_bits_whatever_its_companions(
    row: int, dtype: torch.dtype, make_tiny_model: Callable[..., Any]
) -> None:
    scoring = evaluator(make_tiny_model().to(dtype))

    def among(companions: Sequence[Candidate]) -> tuple[float, ...]:
        result = together(scoring, *companions[:row], MINE, *companions[row:])[row]
        assert isinstance(result, BlockScore)
        return result.nll

    expected = among(OTHERS[:3])
    assert among(OTHERS[3:6]) == expected
    assert among([MINE] * 3) == expected  # fillers
    assert among([OTHERS[6], OVERFLOWS, OTHERS[0]]) == expected
    alone = scoring.evaluate(Task(MINE, SAMPLE.digest))
    assert expected == pytest.approx(alone.nll, rel=1e-5 if dtype == torch.float32 else 1e-2)
    other = together(scoring, *OTHERS[:4])[row]
    assert isinstance(other, BlockScore)
    assert other.nll != pytest.approx(expected, rel=1e-3)  # factors matter at all


def test_a_loss_that_is_not_finite_fails_its_own_row_for_the_reason_it_fails_alone(
    make_tiny_model: Callable[..., Any],
) -> None:
    scoring = evaluator(make_tiny_model())
    worker = Worker(1)
    worker.load(lambda: scoring)
    alone = worker.evaluate(Task(OVERFLOWS, SAMPLE.digest))
    assert isinstance(alone, Raised)
    assert "the loss is not finite; try bfloat16 or float32" in alone.reason
    first, bad, last = together(scoring, MINE, OVERFLOWS, OTHERS[0])
    assert bad == Failure(alone.reason)
    assert isinstance(first, BlockScore)
    assert isinstance(last, BlockScore)
    assert first.tokens == len(SAMPLE.tokens) - 1


def test_the_time_of_a_pass_is_shared_by_its_candidates_without_fillers(
    make_tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = evaluator(make_tiny_model())
    clock = iter([10.0, 16.0, 20.0, 26.0])
    monkeypatch.setattr("longrope.search.evaluator.time.perf_counter", lambda: next(clock))
    assert [row.seconds for row in together(scoring, *OTHERS[:3], OTHERS[2]) if isinstance(row, BlockScore)] == [
        2.0
    ] * 4
    assert scoring.evaluate(Task(MINE, SAMPLE.digest)).seconds == 6.0


def test_a_probe_is_something_an_evaluator_does(
    make_tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "WORTH", math.inf)
    seconds = evaluator(make_tiny_model()).evaluate(BatchProbe(SAMPLE.digest, 4))
    assert len(seconds) == 3
    assert min(seconds) > 0


# --- One result whatever computes it ---


@pytest.fixture(scope="module")
def settings_of(model_folder: Path, documents_file: Path) -> Iterator[Callable[..., SearchSettings]]:
    """A search in which candidates are dropped, so that the later samples of a round have fewer batches."""
    data = DataSettings(source=str(documents_file), samples=4, held_out=3)

    def make(output: Path, **more: Any) -> SearchSettings:
        return settings(model_folder, documents_file, output, 128, coarse_to_fine("genetic"), data=data, **more)

    with pytest.MonkeyPatch.context() as patch:
        eager_races(patch)
        yield make


@pytest.fixture(scope="module")
def undisturbed(settings_of: Callable[..., SearchSettings], tmp_path_factory: pytest.TempPathFactory) -> SearchReport:
    """A search in batches of four, in this process."""
    execution = ExecutionSettings(workers=1, batch=4)
    report, _ = search_in_process(settings_of(tmp_path_factory.mktemp("runs") / "undisturbed", execution=execution))
    assert report.solution.course.saved_tokens > 0
    return report


def scores(folder: Path) -> dict[tuple[Candidate, str], list[float]]:
    events = [event for event in read_journal(folder / JOURNAL)[1] if event["kind"] == "evaluation"]
    return {(Candidate.from_dict(event["candidate"]), event["sample"]): event["nll"] for event in events}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_bits(
    workers: int, undisturbed: SearchReport, settings_of: Callable[..., SearchSettings], tmp_path: Path
) -> None:
    execution = ExecutionSettings(workers=workers, batch=4)
    report = search(settings_of(tmp_path / "run", execution=execution))
    assert scores(report.folder) == scores(undisturbed.folder)
    assert report.solution.course == undisturbed.solution.course
    assert (report.folder / "factors.json").read_bytes() == (undisturbed.folder / "factors.json").read_bytes()
    assert report.factors.provenance["settings"]["batch"] == 4


@pytest.mark.parametrize("share", [0.0, 0.35, 0.7])
def test_a_torn_journal_is_resumed_with_its_batches(
    share: float, undisturbed: SearchReport, settings_of: Callable[..., SearchSettings], tmp_path: Path
) -> None:
    lines = (undisturbed.folder / JOURNAL).read_bytes().splitlines(keepends=True)
    run = tmp_path / "run"
    run.mkdir()
    (run / JOURNAL).write_bytes(b"".join(lines[: 2 + round(share * len(lines))]) + lines[-1][:50])
    report, pool = search_in_process(settings_of(run, resume=True))
    assert all(isinstance(task, Batch) and len(task.candidates) == 4 for task in pool.asked)
    assert scores(run) == scores(undisturbed.folder)
    assert (run / "factors.json").read_bytes() == (undisturbed.folder / "factors.json").read_bytes()
    assert report.table.equals(undisturbed.table)


def test_the_cost_that_is_foreseen_is_that_of_full_batches(tmp_path: Path) -> None:
    class Pool(ProbedPool):
        def run(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
            for task in tasks:  # a pass takes 4 seconds
                yield task, (BlockScore((1.0,), 1, 4.0 / len(set(task.candidates))),) * 4

    plain = RopeFactors.identity(10000.0, 16, 64)
    rope, space = ModelRope(ARCHITECTURES["llama"], FixedFactors(plain), 64), SearchSpace(8, 1.0, 5.0)
    problem = Problem(rope, 300, space, (), (), SampleSet((SAMPLE,)), (300,))
    with Journal.create(tmp_path / "journal", {}) as journal:
        told = predicted_cost(problem, Scorer(Pool(), journal, Progress(), batch=4), [MINE], planned=100)
    assert told.endswith("4.00 s for the first: about 100 seconds")


# --- How many rows ---


class Clock:
    """Passes take what a table says by their rows, and do not fit where it says nothing."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.now, self.rows = 0.0, list[int]()
        self._seconds = seconds

    def run(self, rows: int) -> None:
        self.rows.append(rows)
        if rows not in self._seconds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.now += self._seconds[rows]

    def measured(self, most: int = 64) -> tuple[float, ...]:
        return time_batches(self.run, most, lambda: self.now)


def test_passes_are_timed_until_more_rows_are_not_worth_it() -> None:
    clock = Clock({1: 0.25, 2: 0.25, 4: 0.25, 8: 0.5, 16: 1.0})
    assert clock.measured() == (0.25, 0.125, 0.0625, 0.0625)
    assert clock.rows == [1, *[1] * 3, *[2] * 3, *[4] * 3, *[8] * 3]  # the first is not counted


def test_passes_are_timed_until_memory_ends() -> None:
    clock = Clock({1: 4.0, 2: 4.0})
    assert clock.measured() == (4.0, 2.0)
    assert clock.rows == [1, 1, 2, 4]  # long ones once
    with pytest.raises(torch.OutOfMemoryError):
        Clock({}).measured()


@pytest.mark.parametrize(("most", "times"), [(32, 6), (8, 4), (7, 3), (1, 1)])
def test_a_device_that_is_never_full_gets_no_more_rows_than_it_is_given(most: int, times: int) -> None:
    assert len(Clock(dict.fromkeys((1, 2, 4, 8, 16, 32, 64), 0.5)).measured(most)) == times


@pytest.mark.parametrize(("together", "workers", "most"), [(32, 1, 32), (8, 1, 8), (8, 3, 3), (8, 8, 1), (8, 20, 1)])
def test_every_worker_has_a_part_of_a_round(together: int, workers: int, most: int, tmp_path: Path) -> None:
    pool = ProbedPool(FOUR)
    pool.workers = workers
    settled(tmp_path / "journal", pool, together=together)
    assert pool.asked == [BatchProbe(SAMPLE.digest, most)]


def test_what_is_faster_once_by_chance_is_not_slower_for_that() -> None:
    taken = iter([9.0, 0.4, 0.3, 0.5, 0.6, 0.8, 0.7])
    now = [0.0]

    def run(rows: int) -> None:
        now[0] += next(taken)

    assert time_batches(run, 2, lambda: now[0]) == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        ((), 1),
        ((5.0,), 1),
        ((5.0, 4.9), 1),  # full already
        ((5.0, 2.6, 1.4, 1.3), 4),
        ((5.0, 2.6, 1.4), 4),  # more do not fit
        ((1.0, 0.89), 2),
        ((1.0, 0.91), 1),
    ],
)
def test_rows_are_doubled_as_long_as_it_is_worth_it(seconds: tuple[float, ...], rows: int) -> None:
    assert worthwhile_rows(seconds) == rows


@given(st.lists(st.floats(1e-6, 1e6), max_size=7))
def test_each_doubling_up_to_the_chosen_rows_gained_a_tenth(seconds: list[float]) -> None:
    steps = worthwhile_rows(seconds).bit_length() - 1
    assert worthwhile_rows(seconds) == 2**steps
    assert steps < max(len(seconds), 1)
    assert all(after <= 0.9 * before for before, after in pairwise(seconds[: steps + 1]))
    assert steps + 1 >= len(seconds) or seconds[steps + 1] > 0.9 * seconds[steps]


class ProbedPool(EvaluationPool[Any, Any]):
    """Answers every probe alike, and nothing else."""

    def __init__(self, answer: tuple[float, ...] | Failure = ()) -> None:
        self.workers, self.asked = 1, list[Any]()
        self._answer = answer

    def start(self) -> None:
        pass

    def run(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for task in tasks:
            assert isinstance(task, BatchProbe)
            self.asked.append(task)
            yield task, self._answer

    def close(self) -> None:
        pass


EVALUATION = {"kind": "evaluation", "candidate": MINE.to_dict(), "sample": "0", "nll": [1.0], "tokens": 1, "seconds": 1}
FOUR = (1.0, 0.5, 0.3, 0.29)


def settled(
    path: Path,
    pool: ProbedPool,
    given: int | None = None,
    on: Sample | None = SAMPLE,
    past: Sequence[Any] = (),
    together: int = 32,
) -> tuple[int, list[Any], list[str]]:
    """The size, what the journal has then, and what was told."""
    told: list[str] = []
    with Journal.resume(path, {}) if path.exists() else Journal.create(path, {}) as journal:
        for event in past:
            journal.append(event)
        return settle_batch(journal, pool, given, on, together, told.append), journal.events, told


def test_a_size_is_measured_once_in_the_life_of_a_journal(tmp_path: Path) -> None:
    path, pool = tmp_path / "journal", ProbedPool(FOUR)
    size, events, told = settled(path, pool)
    assert (size, pool.asked) == (4, [BatchProbe(SAMPLE.digest, 32)])
    assert events == [{"kind": "batch", "size": 4, "seconds": list(FOUR)}]
    assert told == ["4 candidates in one forward pass, 3.3 times as fast as one by one"]
    later = ProbedPool((1.0, 0.5, 0.25, 0.1, 0.05))
    assert settled(path, later) == (4, events, [])
    assert settled(path, later, given=4) == (4, events, [])
    size, same, told = settled(path, later, given=8)
    assert (size, same) == (4, events)
    assert told == ["the run was begun with 4 candidate(s) in one forward pass and goes on so, not with 8"]
    assert later.asked == []


def test_a_size_that_is_given_is_not_measured(tmp_path: Path) -> None:
    pool = ProbedPool(FOUR)
    assert settled(tmp_path / "journal", pool, given=3) == (3, [{"kind": "batch", "size": 3}], [])
    assert settled(tmp_path / "journal", pool) == (3, [{"kind": "batch", "size": 3}], [])
    assert pool.asked == []


@pytest.mark.parametrize("on", [None, Sample("long", np.zeros(65537))])
def test_nothing_is_measured_where_one_row_fills_the_device(on: Sample | None, tmp_path: Path) -> None:
    pool = ProbedPool(FOUR)
    assert settled(tmp_path / "journal", pool, on=on) == (1, [], [])
    assert pool.asked == []


def test_a_run_from_before_there_were_batches_goes_on_without(tmp_path: Path) -> None:
    pool = ProbedPool(FOUR)
    assert settled(tmp_path / "journal", pool, past=[EVALUATION]) == (1, [EVALUATION], [])
    size, _, [told] = settled(tmp_path / "journal", pool, given=2)
    assert (size, pool.asked) == (1, [])
    assert "goes on so, not with 2" in told


def test_a_probe_that_fails_ends_no_search(tmp_path: Path) -> None:
    pool = ProbedPool(Failure("RuntimeError: no such kernel"))
    size, events, told = settled(tmp_path / "journal", pool)
    assert (size, events) == (1, [{"kind": "batch", "size": 1, "seconds": []}])
    assert told == ["batches could not be measured (RuntimeError: no such kernel), so each candidate is scored alone"]


@pytest.mark.parametrize(("device", "batch"), [("auto", 4), ("cpu", 1)])
def test_a_run_measures_on_a_gpu_and_scores_in_batches_of_what_it_found(
    device: str, batch: int, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(model_folder), ExecutionSettings(device="cpu"))
    model = replace(model, source=replace(model.source, device=device))
    pool = ProbedPool(FOUR)
    monkeypatch.setattr("longrope.search.run.make_pool", lambda *others: pool)
    samples = SampleSet((SAMPLE, Sample("other", [1, 2, 3])))
    for folder in ("window-32", "window-64"):  # each has a journal of its own
        arguments = (tmp_path / folder, {}, model, samples, (300,), ExecutionSettings(), 32, True, Progress())
        with open_scorer(*arguments) as scorer:
            assert scorer.batch == batch
        assert not (tmp_path / folder / JOURNAL).exists()  # nothing was evaluated: the folder stays free
    assert pool.asked == ([BatchProbe(SAMPLE.digest, 32)] * 2 if batch > 1 else [])
