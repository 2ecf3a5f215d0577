"""What runs inside a worker: a loaded model that scores (candidate, sample) pairs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from longrope.data.samples import Sample
from longrope.model.load import ModelSource
from longrope.rope.factors import RopeFactors
from longrope.search.evaluation import BlockScore, Task


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
    """Scores one sample under one candidate at a time."""

    def __init__(self, model: Any, template: RopeFactors, samples: Mapping[str, Sample]) -> None:
        self._model = model
        self._template = template
        self._samples = samples

    def evaluate(self, task: Task) -> BlockScore:
        """NLL sums of the sample's blocks; the time is that of the model alone.

        Raises:
            FloatingPointError: if the model gives a loss that is not finite.
        """
        from longrope.model.score import score_blocks

        sample = self._samples[task.sample]
        factors = task.candidate.to_factors(self._template, len(sample.tokens))
        started = time.perf_counter()
        nll = score_blocks(self._model, sample.tokens, [factors], first=sample.first)[0]
        seconds = time.perf_counter() - started
        if not np.isfinite(nll).all():
            raise FloatingPointError("the loss is not finite; try bfloat16 or float32")
        return BlockScore(tuple(nll.tolist()), len(sample.tokens) - sample.first, seconds)
