"""The worker's side of a pool: loads the evaluator, evaluates, and turns whatever goes wrong into a value.

Shared by local processes and Ray actors. Exceptions stay here as text, since not every exception survives pickling.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from typing import Any

from longrope import exceptions
from longrope.workers.pool import Evaluator, EvaluatorFactory


@dataclass(frozen=True)
class Ready:
    """The evaluator is loaded."""


@dataclass(frozen=True)
class NotLoaded:
    """The evaluator cannot be loaded.

    Attributes:
        reason: in one line.
        input_error: name of the InvalidInputError subclass that was raised, with ``reason`` its message; None if
            it was another exception.
        trace: the traceback, for debugging.
    """

    reason: str
    input_error: str | None = None
    trace: str = ""

    def input_exception(self) -> exceptions.InvalidInputError | None:
        """The user's mistake that the factory reported, if it was one."""
        if self.input_error is None:
            return None
        error: exceptions.InvalidInputError = getattr(exceptions, self.input_error)(self.reason)
        return error


@dataclass(frozen=True)
class Raised:
    """The evaluation raised.

    Attributes:
        reason: in one line.
        trace: the traceback, for debugging.
        harmless: the worker can go on: it is the numbers that were at fault.
    """

    reason: str
    trace: str = ""
    harmless: bool = False


@dataclass(frozen=True)
class Died:
    """The worker is gone; said by the pool, for the worker cannot."""

    reason: str


@dataclass(frozen=True)
class Done:
    """A task is done; ``result`` is what the evaluator gave."""

    result: Any


Reply = Ready | NotLoaded | Done | Raised | Died


class Worker:
    """Holds the evaluator of one worker, whose numeric libraries use ``threads`` threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._evaluator: Evaluator | None = None

    def load(self, factory: EvaluatorFactory) -> Ready | NotLoaded:
        """Make the evaluator; to be called once, before the first evaluation."""
        try:
            self._limit_threads()
            self._evaluator = factory()
        except Exception as error:
            return not_loaded(error)
        return Ready()

    def evaluate(self, task: Any) -> Done | Raised:
        """Do one task."""
        assert self._evaluator is not None, "load before evaluate"
        try:
            # Again before each evaluation: torch may have been imported since, and results depend on it.
            self._limit_threads()
            return Done(self._evaluator.evaluate(task))
        except Exception as error:
            return Raised(one_line(error), traceback.format_exc(), harmless=isinstance(error, ArithmeticError))

    def _limit_threads(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(self._threads)


def not_loaded(error: Exception) -> NotLoaded:
    """What to reply when loading raised ``error``."""
    if isinstance(error, exceptions.InvalidInputError):
        # The nearest class of the tree, should the error be a subclass defined elsewhere.
        name = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == exceptions.__name__)
        return NotLoaded(str(error), name, traceback.format_exc())
    return NotLoaded(one_line(error), None, traceback.format_exc())


def one_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that limit numeric libraries to ``threads`` threads from their import on."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
