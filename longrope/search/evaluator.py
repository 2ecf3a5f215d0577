"""What runs inside a worker: a loaded model that scores candidates on samples, one by one or in batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longrope.data.samples import Sample
from longrope.model.load import ModelSource
from longrope.rope.factors import RopeFactors
from longrope.search.batching import BatchProbe, time_batches
from longrope.search.evaluation import Batch, BlockScore, Task
from longrope.workers.pool import Failure
from longrope.workers.worker import one_line


@dataclass(frozen=True)
class ModelEvaluatorFactory:
    """Loads the model in the worker that calls it; picklable.

    Attributes:
        source: the model and how to load it.
        template: factors that tell rope_theta, rotary_dim and original_length.
        samples: by digest, tokenised once by the driver.
    """

    source: ModelSource
    template: RopeFactors
    samples: Mapping[str, Sample]

    def __call__(self) -> ModelEvaluator:
        from tqdm import tqdm
        from transformers.utils import logging

        logging.disable_progress_bar()  # a worker is not the one who speaks
        # tqdm's own lock is a semaphore of the system, which a worker that is killed would leave behind.
        tqdm.set_lock(threading.RLock())
        return ModelEvaluator(self.source.load_model(), self.template, self.samples)


class ModelEvaluator:
    """Scores one sample under one candidate, or under several in one forward pass."""

    def __init__(self, model: Any, template: RopeFactors, samples: Mapping[str, Sample]) -> None:
        self._model = model
        self._template = template
        self._samples = samples

    def evaluate(self, task: Task | Batch | BatchProbe) -> Any:
        """A BlockScore for a Task, a tuple of BlockScore or Failure for a Batch, and what a BatchProbe measured.

        Times are those of the model alone.

        Raises:
            FloatingPointError: if a candidate of its own gives a loss that is not finite; in a batch it is a Failure.
        """
        if isinstance(task, BatchProbe):
            return self._measured(self._samples[task.sample], task.most)
        sample = self._samples[task.sample]
        candidates = task.candidates if isinstance(task, Batch) else (task.candidate,)
        factors = [candidate.to_factors(self._template, len(sample.tokens)) for candidate in candidates]
        started = time.perf_counter()
        rows = self._nll(sample, factors)
        seconds = (time.perf_counter() - started) / len(set(candidates))
        if isinstance(task, Batch):
            return tuple(_score_or_failure(row, sample, seconds) for row in rows)
        return _score(rows[0], sample, seconds)

    def _nll(self, sample: Sample, factors: Sequence[RopeFactors]) -> npt.NDArray[np.float64]:
        from longrope.model.score import score_blocks

        return score_blocks(self._model, sample.tokens, factors, first=sample.first)

    def _measured(self, sample: Sample, most: int) -> tuple[float, ...]:
        plain = self._template.replace(target_length=len(sample.tokens))
        # Rows that differ, as those of a search do: equal ones would share their cosines and sines.
        return time_batches(lambda rows: self._nll(sample, [plain.replace(n_hat=2 * row) for row in range(rows)]), most)


def _score(nll: npt.NDArray[np.float64], sample: Sample, seconds: float) -> BlockScore:
    """The result of one row, (blocks,) sums in nats.

    Raises:
        FloatingPointError: if one is not finite.
    """
    from longrope.model.score import BLOCK

    if not np.isfinite(nll).all():
        raise FloatingPointError("the loss is not finite; try bfloat16 or float32")
    # Blocks in which nothing counts are the same in all candidates, and would pass for evidence of that.
    return BlockScore(tuple(nll[sample.first // BLOCK :].tolist()), len(sample.tokens) - sample.first, seconds)


def _score_or_failure(nll: npt.NDArray[np.float64], sample: Sample, seconds: float) -> BlockScore | Failure:
    try:
        return _score(nll, sample, seconds)
    except FloatingPointError as error:
        return Failure(one_line(error))
