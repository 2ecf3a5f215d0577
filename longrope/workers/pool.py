"""Work (values), what does it (evaluators) and what hands it out (pools)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar


class Labelled(Protocol):
    """A task: a value that can be pickled and hashed."""

    @property
    def label(self) -> str:
        """What it is called in messages."""
        ...


TaskT = TypeVar("TaskT", bound=Labelled)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Failure:
    """A task that failed in every attempt; ``reason`` is that of the last one."""

    reason: str


class Evaluator(Protocol):
    """What a worker holds: a loaded model, mostly."""

    def evaluate(self, task: Any) -> Any:
        """Do one task. Any exception counts as a failed attempt."""
        ...


EvaluatorFactory = Callable[[], Evaluator]
"""Makes the evaluator inside a worker, once: it is pickled, so best a frozen dataclass with ``__call__``.

An ``InvalidInputError`` that it raises reaches the user as it is.
"""


class EvaluationPool(ABC, Generic[TaskT, ResultT]):
    """Workers that evaluate tasks. A context manager: entering starts the workers, leaving stops them.

    Attributes:
        workers: evaluators that work at the same time, once all have started; fewer when some had to be given up.
    """

    workers: int

    @abstractmethod
    def start(self) -> None:
        """Begin to start the workers, without waiting for them; nothing happens if that was done before."""

    @abstractmethod
    def run(self, tasks: Iterable[TaskT]) -> Iterator[tuple[TaskT, ResultT | Failure]]:
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

    def __enter__(self) -> EvaluationPool[TaskT, ResultT]:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
