"""WorkerPool with workers, GPUs and candidates that keep failing, against a simulated clock."""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Callable

import pytest

from longrope.exceptions import DataError, InvalidInputError, WorkerError
from longrope.search.candidate import Candidate
from longrope.search.evaluation import BlockScore, Task
from longrope.workers.dispatch import WorkerPool
from longrope.workers.pool import Failure
from longrope.workers.worker import Died, Done, NotLoaded, Raised, Ready, Reply, Worker

SCORE = BlockScore((1.0,), 256, 0.0)
CUDA = Raised("CUDA error: an illegal memory access was encountered", "Traceback: in attention")
LOAD_SECONDS, EVALUATION_SECONDS, FAULT_SECONDS = 60.0, 10.0, 0.01

Start = Callable[[int, int], Reply]  # of a worker and how often that number was started before
Evaluate = Callable[[int, int, int], Reply | BlockScore]  # the same, and the number of the task


def task(number: int) -> Task:
    return Task(Candidate((1.0, float(number)), 0, 1.0), "sample")


def tasks(count: int) -> list[Task]:
    return [task(number) for number in range(count)]


class ClockedPool(WorkerPool):
    """Loading and evaluating take their time; faults come at once."""

    def __init__(
        self,
        workers: int,
        evaluate: Evaluate = lambda worker, start, number: SCORE,
        start: Start = lambda worker, start: Ready(),
        no_room: frozenset[int] = frozenset(),
    ) -> None:
        self.events: list[str] = []
        super().__init__(workers, 1, 0.0, 3, self.events.append)
        self.script_start, self.script_evaluate, self.no_room = start, evaluate, no_room
        self.now = 0.0
        self.coming: list[tuple[float, int, int]] = []
        self.replies: dict[int, Reply] = {}
        self.starts: Counter[int] = Counter()
        self.tried: dict[int, list[tuple[int, int]]] = {}

    def _open(self) -> None:
        pass

    def _later(self, worker: int, seconds: float, reply: Reply) -> None:
        assert worker not in self.replies
        self.replies[worker] = reply
        heapq.heappush(self.coming, (self.now + seconds, len(self.coming), worker))

    def _start_worker(self, worker: int) -> None:
        reply = self.script_start(worker, self.starts[worker])
        self.starts[worker] += 1
        if worker not in self.no_room:
            self._later(worker, LOAD_SECONDS + worker if isinstance(reply, Ready) else FAULT_SECONDS, reply)

    def _stop_worker(self, worker: int) -> None:
        assert worker not in self.replies, "stopped while busy"

    def _submit(self, worker: int, task: Task) -> None:
        number, start = int(task.candidate.lambdas[1]), self.starts[worker] - 1
        self.tried.setdefault(number, []).append((worker, start))
        reply = self.script_evaluate(worker, start, number)
        if isinstance(reply, BlockScore):
            self._later(worker, EVALUATION_SECONDS, Done(reply))
        else:
            self._later(worker, FAULT_SECONDS, reply)

    def _wait(self) -> list[tuple[int, Reply]]:
        if not self.coming:
            assert self.no_room, "would hang"
            return []
        self.now, _, worker = heapq.heappop(self.coming)
        return [(worker, self.replies.pop(worker))]

    def _shut(self) -> None:
        pass


def run(pool: ClockedPool, count: int) -> dict[Task, BlockScore | Failure]:
    with pool:
        return dict(pool.run(tasks(count)))


@pytest.mark.parametrize("cured", [True, False], ids=["sticky error", "broken GPU"])
@pytest.mark.parametrize("fault", [CUDA, Died("signal 9"), Raised("loss is not finite", harmless=True)])
def test_one_bad_worker_of_several_fails_no_task(cured: bool, fault: Reply) -> None:
    def evaluate(worker: int, start: int, number: int) -> Reply | BlockScore:
        return fault if worker == 3 and (start == 0 or not cured) else SCORE

    assert run(ClockedPool(8, evaluate), 160) == dict.fromkeys(tasks(160), SCORE)


def test_a_bad_worker_that_starts_first_does_not_use_up_the_attempts() -> None:
    def start(worker: int, start: int) -> Reply:
        # The other starts only at its second try, after the bad one has failed the only task.
        return NotLoaded("no memory") if worker == 1 and start == 0 else Ready()

    pool = ClockedPool(2, lambda worker, start, number: CUDA if worker == 0 else SCORE, start)
    assert run(pool, 1) == {task(0): SCORE}
    assert pool.tried[0] == [(0, 0), (1, 1)]


def test_a_bad_worker_is_replaced_at_its_first_exception() -> None:
    pool = ClockedPool(2, lambda worker, start, number: CUDA if (worker, start) == (1, 0) else SCORE)
    assert run(pool, 40) == dict.fromkeys(tasks(40), SCORE)
    assert pool.starts == {0: 1, 1: 2}
    assert f"evaluator 1 raised ({CUDA.reason}), replaced" in pool.events
    assert any(worker == (1, 1) for tried in pool.tried.values() for worker in tried)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_a_poison_candidate_costs_its_attempts_and_nothing_else(workers: int) -> None:
    pool = ClockedPool(workers, lambda worker, start, number: CUDA if number == 5 else SCORE)
    assert run(pool, 40) == {**dict.fromkeys(tasks(40), SCORE), task(5): Failure(CUDA.reason)}
    assert len(set(pool.tried[5])) == len(pool.tried[5]) == 3  # never twice on the same process
    assert len({worker for worker, _ in pool.tried[5]}) == min(workers, 3)
    assert sum(pool.starts.values()) == workers + 3


def test_numbers_that_are_not_finite_cost_no_replacement() -> None:
    fault = Raised("the loss is not finite", harmless=True)
    pool = ClockedPool(1, lambda worker, start, number: fault if number == 0 else SCORE)
    assert run(pool, 3) == {task(0): Failure(fault.reason), task(1): SCORE, task(2): SCORE}
    assert pool.starts == {0: 1}


def test_a_retry_does_not_wait_for_workers_that_find_no_room() -> None:
    pool = ClockedPool(2, lambda worker, start, number: SCORE if start else CUDA, no_room=frozenset({1}))
    assert run(pool, 2) == {task(0): SCORE, task(1): SCORE}


def test_a_worker_that_cannot_start_any_more_is_given_up() -> None:
    pool = ClockedPool(
        8,
        lambda worker, start, number: Died("signal 11") if worker == 3 else SCORE,
        lambda worker, start: NotLoaded("no such device") if worker == 3 and start else Ready(),
    )
    assert run(pool, 80) == dict.fromkeys(tasks(80), SCORE)
    assert pool.events[-1] == "evaluator 3 given up after 3 failed starts: no such device; going on with 7"
    assert pool.workers == 7
    assert pool.starts[3] == 4


def test_a_retry_does_not_wait_for_workers_that_are_given_up() -> None:
    pool = ClockedPool(
        2,
        lambda worker, start, number: Died("signal 11") if worker == 1 else CUDA if number == 30 else SCORE,
        lambda worker, start: NotLoaded("no such device") if worker == 1 and start else Ready(),
    )
    assert run(pool, 31) == {**dict.fromkeys(tasks(30), SCORE), task(30): Failure(CUDA.reason)}


def test_starts_that_fail_now_and_then_do_not_add_up() -> None:
    pool = ClockedPool(
        1,
        lambda worker, start, number: Died("signal 9") if start % 2 == 0 and start < 8 else SCORE,
        lambda worker, start: NotLoaded("no memory") if start % 2 else Ready(),
    )
    pool._attempts = 9
    assert run(pool, 2) == dict.fromkeys(tasks(2), SCORE)


@pytest.mark.parametrize(("error", "harmless"), [(FloatingPointError("not finite"), True), (MemoryError(), False)])
def test_only_the_numbers_are_harmless(error: Exception, harmless: bool) -> None:
    class Broken:
        def evaluate(self, task: Task) -> BlockScore:
            raise error

    worker = Worker(1)
    worker.load(Broken)
    reply = worker.evaluate(task(0))
    assert isinstance(reply, Raised)
    assert reply.harmless is harmless


@pytest.mark.parametrize("fault", [Died("signal 9"), NotLoaded("the folder does not exist", "DataError")])
@pytest.mark.parametrize("failures", [1, 2, 9])
def test_the_first_to_start_may_fail_where_others_do_not(fault: Reply, failures: int) -> None:
    pool = ClockedPool(3, start=lambda worker, start: fault if worker == 1 and start < failures else Ready())
    assert run(pool, 30) == dict.fromkeys(tasks(30), SCORE)
    assert pool.starts == {0: 1, 1: min(failures + 1, 3), 2: 1}
    assert pool.workers == (3 if failures < 3 else 2)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (NotLoaded("no model"), WorkerError, "evaluator 7 could not start: no model"),
        (NotLoaded("no data; give some", "DataError"), DataError, "no data; give some"),
        (Died("signal 9"), WorkerError, "evaluator 7 could not start: signal 9"),
    ],
)
def test_what_fails_everywhere_is_tried_once(fault: Reply, error: type[Exception], message: str) -> None:
    pool = ClockedPool(8, start=lambda worker, start: fault)
    with pytest.raises(error) as caught:
        run(pool, 1)
    assert str(caught.value) == message
    assert set(pool.starts.values()) == {1}


def test_the_run_ends_when_the_last_worker_is_given_up() -> None:
    pool = ClockedPool(
        3,
        lambda worker, start, number: Died("signal 11"),
        lambda worker, start: NotLoaded("no such device", "DataError") if start else Ready(),
    )
    with pytest.raises(WorkerError, match="could not start, 3 times in a row: no such device") as caught:
        run(pool, 30)
    assert not isinstance(caught.value, InvalidInputError)
    assert pool.starts == {0: 4, 1: 4, 2: 4}


def test_tracebacks_of_workers_can_be_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="longrope"):
        run(ClockedPool(1, lambda worker, start, number: SCORE if start else CUDA), 1)
    assert "evaluator 0: Traceback: in attention" in caplog.messages
