"""Evaluations: what is computed (values), what computes it (evaluators) and what hands the work out (pools)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from longrope.search.candidate import Candidate


@dataclass(frozen=True)
class Task:
    """One evaluation to do: a candidate on a sample.

    Attributes:
        candidate: the factors to score.
        sample: digest of the sample to score them on.
    """

    candidate: Candidate
    sample: str


@dataclass(frozen=True)
class BlockScore:
    """The result of one evaluation.

    Attributes:
        nll: sums of the negative log-likelihood in nats, one per block of 256 predicted tokens.
        tokens: predicted tokens in all blocks.
        seconds: time spent in the model.
    """

    nll: tuple[float, ...]
    tokens: int
    seconds: float

    @property
    def total(self) -> float:
        """NLL of the whole sample in nats."""
        return math.fsum(self.nll)


@dataclass(frozen=True)
class Failure:
    """An evaluation that failed in every attempt; ``reason`` is that of the last one."""

    reason: str


class Evaluator(Protocol):
    """A loaded model that scores candidates on samples."""

    def evaluate(self, candidate: Candidate, sample: str) -> BlockScore:
        """Score one candidate on the sample with this digest. Any exception counts as a failed attempt."""
        ...


EvaluatorFactory = Callable[[], Evaluator]
"""Makes the evaluator inside a worker, once: it is pickled, so best a frozen dataclass with ``__call__``.

An ``InvalidInputError`` that it raises reaches the user as it is.
"""


class EvaluationPool(ABC):
    """Workers that evaluate tasks. A context manager: entering starts the workers, leaving stops them.

    Attributes:
        workers: evaluators that work at the same time, once all have started; fewer when some had to be given up.
    """

    workers: int

    @abstractmethod
    def start(self) -> None:
        """Begin to start the workers, without waiting for them; nothing happens if that was done before."""

    @abstractmethod
    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, BlockScore | Failure]]:
        """Evaluate all tasks and yield each with its result as it arrives, in any order.

        Tasks are taken from the iterable only when a worker is free for them. A task whose evaluation raises or
        kills its worker is tried again, on another worker or a fresh one, and ends as a ``Failure`` after the pool's
        number of attempts.
        The iterator may be closed early: what is under way then is dropped and the pool can run other tasks.

        Raises:
            InvalidInputError: raised by the factory, as it is, if no worker could start.
            WorkerError: if no worker can be started, or no longer.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop the workers, also those in the middle of an evaluation; closing twice is harmless."""

    def __enter__(self) -> EvaluationPool:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
