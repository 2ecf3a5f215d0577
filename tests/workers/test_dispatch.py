"""WorkerPool's bookkeeping against workers that are simulated, in any order of arrival and with any faults."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.exceptions import WorkerError
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.workers.dispatch import STARTS, WorkerPool
from longrope.workers.pool import Failure
from longrope.workers.worker import Died, Done, NotLoaded, Raised, Ready, Reply

ATTEMPTS = 3
FAULTS = {"ok": None, "raise": Raised("raised"), "die": Died("died")}


def task(number: int) -> Task:
    return Task(Candidate((1.0, float(number)), 0, 1.0), "sample")


def score(number: int) -> BlockScore:
    return BlockScore((float(number),), 256, 0.0)


class SimulatedPool(WorkerPool):
    """Does task ``number`` as ``plans[number]`` says, attempt by attempt.

    ``draw`` decides who speaks next; without it all do.
    """

    def __init__(
        self,
        workers: int,
        plans: list[list[str]],
        draw: st.DataObject | None = None,
        starts: list[Reply] | None = None,
    ) -> None:
        self.events: list[str] = []
        super().__init__(workers, 1, 0.0, ATTEMPTS, self.events.append)
        self.plans, self.draw = plans, draw
        self.starts = starts if starts is not None else []
        self.doing: dict[int, Reply] = {}
        self.alive: set[int] = set()
        self.begun: Counter[int] = Counter()

    def _open(self) -> None:
        pass

    def _start_worker(self, worker: int) -> None:
        assert worker not in self.alive
        self.alive.add(worker)
        self.doing[worker] = self.starts.pop(0) if self.starts else Ready()

    def _stop_worker(self, worker: int) -> None:
        assert worker in self.alive
        assert worker not in self.doing, "stopped while busy"
        self.alive.remove(worker)

    def _submit(self, worker: int, task: Task) -> None:
        assert worker in self.alive
        assert worker not in self.doing, "handed a task while busy"
        number = int(task.candidate.lambdas[1])
        plan = self.plans[number]
        attempt = self.begun[number]
        self.begun[number] += 1
        self.doing[worker] = FAULTS[plan[attempt] if attempt < len(plan) else "ok"] or Done(score(number))

    def _wait(self) -> list[tuple[int, Reply]]:
        assert self.doing, "waits for workers of which none has anything to do: would hang"
        speakers = sorted(self.doing)
        if self.draw is not None:
            speakers = sorted(self.draw.draw(st.sets(st.sampled_from(speakers), min_size=1)))
        replies = [(worker, self.doing.pop(worker)) for worker in speakers]
        self.alive -= {worker for worker, reply in replies if isinstance(reply, Died | NotLoaded)}
        return replies

    def _shut(self) -> None:
        self.alive.clear()


plans = st.lists(st.lists(st.sampled_from(sorted(FAULTS)), max_size=ATTEMPTS), max_size=8)


@settings(max_examples=50, deadline=None)
@given(workers=st.integers(1, 4), plans=plans, data=st.data())
def test_every_task_ends_once_and_rightly(workers: int, plans: list[list[str]], data: st.DataObject) -> None:
    with SimulatedPool(workers, plans, data) as pool:
        results = list(pool.run(task(number) for number in range(len(plans))))
    assert len(results) == len(plans)
    found = dict(results)
    for number, plan in enumerate(plans):
        faults = [*plan, "ok"].index("ok")
        if faults < ATTEMPTS:
            assert found[task(number)] == score(number)
            assert pool.begun[number] == faults + 1
        else:
            last = "raised" if plan[-1] == "raise" else "the evaluator died (died)"
            assert found[task(number)] == Failure(last)
            assert pool.begun[number] == ATTEMPTS


@settings(max_examples=50, deadline=None)
@given(workers=st.integers(1, 4), plans=plans, taken=st.integers(0, 8), data=st.data())
def test_a_run_may_follow_one_that_was_closed(
    workers: int, plans: list[list[str]], taken: int, data: st.DataObject
) -> None:
    with SimulatedPool(workers, [*plans, [], []], data) as pool:
        run = pool.run(task(number) for number in range(len(plans)))
        for _, _ in zip(range(taken), run, strict=False):
            pass
        run.close()
        last = [len(plans), len(plans) + 1]
        assert dict(pool.run(map(task, last))) == {task(number): score(number) for number in last}


def test_a_run_closed_while_a_task_waits_for_another_attempt_forgets_it() -> None:
    with SimulatedPool(3, [["die"], ["die"], [], []]) as pool:
        run = pool.run(map(task, range(3)))
        assert next(run) == (task(2), score(2))  # its worker has taken one of the others, the second waits
        run.close()
        assert list(pool.run([task(3)])) == [(task(3), score(3))]


@settings(max_examples=50, deadline=None)
@given(
    workers=st.integers(1, 3),
    failures=st.lists(st.sampled_from([NotLoaded("no memory"), Died("signal 9")]), min_size=1, max_size=4),
    data=st.data(),
)
def test_replacements_may_fail_to_start_twice_in_a_row(
    workers: int, failures: list[Reply], data: st.DataObject
) -> None:
    starts = [Ready() for _ in range(workers)] + failures
    with SimulatedPool(workers, [["die"], []], data, list(starts)) as pool:
        # All have started before the one that dies.
        while any(not slot.ready for slot in pool._slots):
            for worker, reply in pool._wait():
                pool._receive(worker, reply)
        run = pool.run([task(0), task(1)])
        if len(failures) < STARTS:
            assert dict(run) == {task(0): score(0), task(1): score(1)}
        elif workers == 1:
            with pytest.raises(WorkerError, match=f"could not start, {STARTS} times in a row: "):
                list(run)


@settings(max_examples=50, deadline=None)
@given(workers=st.integers(1, 3), data=st.data())
def test_a_first_worker_that_cannot_start_ends_the_run_at_once(workers: int, data: st.DataObject) -> None:
    starts: list[Reply] = [NotLoaded("no model")] * workers
    pool = SimulatedPool(workers, [[]], data, starts)
    with pool, pytest.raises(WorkerError, match="could not start: no model"):
        list(pool.run([task(0)]))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_an_exception_of_the_tasks_reaches_the_caller(data: st.DataObject) -> None:
    def tasks() -> object:
        yield task(0)
        raise KeyError("broken")

    with SimulatedPool(1, [[]], data) as pool:
        with pytest.raises(KeyError):
            list(pool.run(tasks()))
        assert dict(pool.run([task(0)])) == {task(0): score(0)}
