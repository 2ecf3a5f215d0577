"""What all pools share: who works on what, attempts, replacements, and when to give up."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from longrope.exceptions import SettingsError, WorkerError
from longrope.workers.pool import EvaluationPool, Failure, Labelled
from longrope.workers.worker import Died, Done, NotLoaded, Raised, Ready, Reply

STARTS = 3  # times in a row that a worker may fail to start before it is given up

_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    task: Any
    attempts: int = 0
    failed_on: set[int] = field(default_factory=set)  # numbers of the workers


@dataclass
class _Slot:
    """The driver's view of one worker and its replacements.

    Busy without a job: it works on what nobody waits for any more. Not ready: it starts, or has failed to.
    """

    ready: bool = False
    busy: bool = False
    job: _Job | None = None
    failed_starts: int = 0  # since its last reply to a task
    postponed: bool = False  # has failed to start, and tries again once any worker has started
    given_up: bool = False


class WorkerPool(EvaluationPool[Any, Any]):
    """A pool whose subclass knows how to start, feed and hear workers, numbered from 0.

    A worker has one task at a time and gets the next as soon as its result is there, before that result is yielded:
    so it works while the caller digests the result. Queueing a second task at each worker would save only the
    round trip (0.2 ms locally, 2 ms with Ray) and cost idle workers at the end of a batch.

    A task that failed is tried on other workers first, and a worker that raised is replaced: after a CUDA error or
    without memory it would fail whatever else it is given, and fast, so that most tasks would end there.

    Args:
        workers: evaluators to run at the same time.
        threads: CPU threads of each.
        gpus_per_worker: 0 (no GPU), a fraction (workers share a GPU) or a whole number.
        attempts: times a task is tried in all.
        events: is told in one line what befalls the workers.

    Raises:
        SettingsError: if a number makes no sense.
    """

    def __init__(
        self,
        workers: int,
        threads: int,
        gpus_per_worker: float,
        attempts: int,
        events: Callable[[str], None] | None,
    ) -> None:
        for name, value in (("workers", workers), ("threads", threads), ("attempts", attempts)):
            if value < 1:
                raise SettingsError(f"{name} is {value}; give at least 1")
        if not (0 <= gpus_per_worker <= 1 or (gpus_per_worker > 1 and float(gpus_per_worker).is_integer())):
            raise SettingsError(f"GPUs per worker is {gpus_per_worker}; give 0, a fraction of 1, or a whole number")
        self.workers = workers
        self._threads = threads
        self._gpus_per_worker = gpus_per_worker
        self._attempts = attempts
        self._tell = events if events is not None else _logger.info
        self._slots: list[_Slot] = []
        self._waiting: deque[_Job] = deque()
        self._running = False
        self._any_started = False
        self._closed = False

    @abstractmethod
    def _open(self) -> None:
        """Prepare what the workers need; called once, before the first starts."""

    @abstractmethod
    def _start_worker(self, worker: int) -> None:
        """Begin to start a worker, in the place of the one of that number if there was one; do not wait for it."""

    @abstractmethod
    def _stop_worker(self, worker: int) -> None:
        """End a living and idle worker, to be replaced."""

    @abstractmethod
    def _submit(self, worker: int, task: Labelled) -> None:
        """Give a ready and idle worker a task. If it has died, ``_wait`` says so later."""

    @abstractmethod
    def _wait(self) -> list[tuple[int, Reply]]:
        """Wait until a worker has something to say, and return that: at most one reply per worker.

        Nothing after a while in vain, if workers that start may have to wait for room without end.
        ``Died`` and ``NotLoaded`` are a worker's last words: the subclass has cleaned up behind it.
        """

    @abstractmethod
    def _shut(self) -> None:
        """Stop all workers and free what ``_open`` took, also if that or the starting failed half-way."""

    def start(self) -> None:
        if self._closed:
            raise WorkerError("the evaluation pool is closed; open a new one")
        if not self._slots:
            try:
                self._open()
                self._slots = [_Slot() for _ in range(self.workers)]
                for worker in range(self.workers):
                    self._start_worker(worker)
            except BaseException:
                self.close()  # the caller's with block is not entered
                raise

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._shut()

    def run(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        assert not self._running, "one run at a time: finish or close the other iterator first"
        self.start()
        self._running = True
        source = iter(tasks)
        try:
            while True:
                self._hand_out(source)
                if not any(slot.job for slot in self._slots) and not self._has_more(source):
                    return
                finished: list[tuple[Any, Any]] = []
                replies = self._wait()
                for worker, reply in replies:
                    finished += self._receive(worker, reply)
                self._hand_out(source, patient=bool(replies))
                for result in finished:
                    yield result
                    if self._closed:
                        raise WorkerError("the evaluation pool was closed in the middle of a run")
        finally:
            self._running = False
            self._waiting.clear()
            for slot in self._slots:
                slot.job = None

    def _hand_out(self, source: Iterator[Any], patient: bool = True) -> None:
        for worker, slot in enumerate(self._slots):
            if slot.ready and not slot.busy and (job := self._next_job(worker, source, patient)):
                job.attempts += 1
                slot.job, slot.busy = job, True
                self._submit(worker, job.task)

    def _next_job(self, worker: int, source: Iterator[Any], patient: bool) -> _Job | None:
        for job in self._waiting:
            if worker not in job.failed_on or not self._others_for(job, patient):
                self._waiting.remove(job)
                return job
        return next(map(_Job, source), None)

    def _others_for(self, job: _Job, patient: bool) -> bool:
        """Whether to wait for a worker on which a job has not failed yet; only the patient count those that start."""
        return any(
            slot.ready or (patient and not slot.given_up)
            for worker, slot in enumerate(self._slots)
            if worker not in job.failed_on
        )

    def _has_more(self, source: Iterator[Any]) -> bool:
        """Whether a job is waiting; takes the next task if none is waiting for another attempt."""
        if not self._waiting and (job := next(map(_Job, source), None)):
            self._waiting.append(job)
        return bool(self._waiting)

    def _receive(self, worker: int, reply: Reply) -> list[tuple[Any, Any]]:
        """Note a reply; the result that it brings, if any."""
        slot = self._slots[worker]
        if isinstance(reply, NotLoaded | Raised) and reply.trace:
            _logger.debug("evaluator %d: %s", worker, reply.trace)
        if isinstance(reply, Ready):
            slot.ready = True
            self._start_postponed()
            return []
        if isinstance(reply, NotLoaded) or (isinstance(reply, Died) and not slot.busy):
            self._start_again(worker, reply)
            return []
        job, slot.job, slot.busy = slot.job, None, False
        slot.failed_starts = 0
        if isinstance(reply, Died):
            self._replace(worker, f"evaluator {worker} died ({reply.reason}), replaced")
        elif isinstance(reply, Raised) and not reply.harmless:
            self._stop_worker(worker)
            self._replace(worker, f"evaluator {worker} raised ({reply.reason}), replaced")
        if job is None:
            return []
        if isinstance(reply, Done):
            return [(job.task, reply.result)]
        reason = f"the evaluator died ({reply.reason})" if isinstance(reply, Died) else reply.reason
        self._tell(f"attempt {job.attempts} of {self._attempts} at {job.task.label} failed: {reason}")
        if job.attempts < self._attempts:
            job.failed_on.add(worker)
            self._waiting.append(job)
            return []
        return [(job.task, Failure(reason))]

    def _replace(self, worker: int, event: str) -> None:
        self._slots[worker].ready = False
        self._tell(event)
        self._start_worker(worker)

    def _start_again(self, worker: int, reply: NotLoaded | Died) -> None:
        """Replace a worker that failed to start or died idle, unless that is hopeless.

        Before any worker has started the fault may be everybody's, so all are heard before any tries again.
        """
        slot = self._slots[worker]
        slot.failed_starts += 1
        what = f"evaluator {worker} {'died while idle' if slot.ready else 'could not start'}"
        slot.ready = False
        if not self._any_started:
            slot.postponed = True
            if all(other.postponed for other in self._slots):
                error = reply.input_exception() if isinstance(reply, NotLoaded) else None
                raise error or WorkerError(f"{what}: {reply.reason}")
            self._tell(f"{what} ({reply.reason}), waiting for the others to")
        elif slot.failed_starts < STARTS:
            self._replace(worker, f"{what} ({reply.reason}), replaced")
        else:
            slot.given_up = True
            left = sum(not other.given_up for other in self._slots)
            if not left:
                raise WorkerError(f"{what}, {STARTS} times in a row: {reply.reason}")
            self.workers = left
            self._tell(
                f"evaluator {worker} given up after {STARTS} failed starts: {reply.reason}; going on with {left}"
            )

    def _start_postponed(self) -> None:
        self._any_started = True
        for worker, slot in enumerate(self._slots):
            if slot.postponed:
                slot.postponed = False
                self._start_worker(worker)
