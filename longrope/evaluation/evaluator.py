"""What runs inside a worker: a loaded model, and the suite that measures it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longrope.evaluation.suite import Suite, Task
from longrope.model.load import ModelSource
from longrope.rope.policy import RopePolicy


@dataclass(frozen=True)
class SuiteEvaluatorFactory:
    """Loads the model in the worker that calls it; picklable.

    Attributes:
        source: the model and how to load it.
        policies: by the names of the methods.
    """

    source: ModelSource
    policies: Mapping[str, RopePolicy]
    suite: Suite

    def __call__(self) -> SuiteEvaluator:
        from tqdm import tqdm
        from transformers.utils import logging

        logging.disable_progress_bar()  # a worker is not the one who speaks
        # tqdm's own lock is a semaphore of the system, which a worker that is killed would leave behind.
        tqdm.set_lock(threading.RLock())
        return SuiteEvaluator(self.source.load_model(), self.source.load_tokenizer(), self.policies, self.suite)


class SuiteEvaluator:
    """Measures one item under one method at a time."""

    def __init__(self, model: Any, tokenizer: Any, policies: Mapping[str, RopePolicy], suite: Suite) -> None:
        self._model, self._tokenizer, self._policies, self._suite = model, tokenizer, policies, suite

    def evaluate(self, task: Task) -> dict[str, Any]:
        """What the suite measures, and the seconds that it took."""
        started = time.perf_counter()
        measured = self._suite.measure(self._model, self._tokenizer, self._policies[task.method], task.item)
        return {**measured, "seconds": round(time.perf_counter() - started, 6)}
