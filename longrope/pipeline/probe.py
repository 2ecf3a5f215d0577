"""Short pieces of the real work on this machine, where no data sheet says how fast it is.

A stage is opened as it would be, with its own documents and as many workers as it will have, because workers slow each
other down. Factors do not change how long anything takes, so the model of the recipe stands for what earlier stages
will have made of it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count, cycle, islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from longrope.data.samples import Sample
from longrope.evaluation.settings import EvaluationSettings
from longrope.evaluation.suite import Task as ItemTask
from longrope.evaluation.suites import SuiteSettings, suite_opener
from longrope.exceptions import RunFailedError
from longrope.finetune.launch import LaunchSettings
from longrope.finetune.model_shape import ModelShape
from longrope.finetune.settings import FinetuneSettings
from longrope.finetune.world import World
from longrope.pipeline.cost import piece_flops
from longrope.pipeline.extended import extended
from longrope.pipeline.stages import ExportSettings, ModelChoice
from longrope.pipeline.work import Work
from longrope.rope.policy import FactorSchedule
from longrope.runs.model import LoadedModel, open_model
from longrope.runs.progress import Progress
from longrope.search.candidate import Candidate
from longrope.search.evaluation import Task
from longrope.search.readjust import ReadjustSettings
from longrope.search.run import open_samples
from longrope.search.settings import DataSettings, SearchSettings
from longrope.workers.local_pool import SPAWN
from longrope.workers.pool import EvaluatorFactory, Failure
from longrope.workers.settings import ExecutionSettings
from longrope.workers.start import make_pool

if TYPE_CHECKING:
    from longrope.pipeline.plan import StagePlan

PIECES = 3
"""Pieces of each length that every worker does at least, after one that is not counted."""
SECONDS = 5.0
"""How long each length is measured at least."""
STEPS = 4
"""Training steps, the first of which is not counted."""
_MOST = 50  # pieces of a length for each worker


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What short pieces of a stage took, in seconds.

    Attributes:
        shape: of the model, by which lengths that were not measured follow from others.
        pieces: of each piece, by the length of its text, while all workers were busy.
        steps: of each optimizer step.
        start: what comes once: reading data, starting workers, loading and writing weights.
    """

    shape: ModelShape
    pieces: Mapping[int, Sequence[float]] = field(default_factory=dict)
    steps: Sequence[float] = ()
    start: float = 0.0

    def complete(
        self, found: StagePlan, total: Callable[[Callable[[Work], float]], float], steps: int = 0
    ) -> StagePlan:
        """The stage with its duration.

        Args:
            total: time of all pieces, given that of each.
            steps: optimizer steps.
        """

        def seconds(of: Callable[[Sequence[float]], float]) -> float:
            return self.start + total(lambda work: self._piece(work, of)) + (steps * of(self.steps) if steps else 0.0)

        return replace(found, seconds=seconds(fmean), fastest=seconds(min), slowest=seconds(max))

    def _piece(self, work: Work, of: Callable[[Sequence[float]], float]) -> float:
        nearest = min((length for length in self.pieces if length >= work.length), default=max(self.pieces))
        scale = piece_flops(self.shape, work) / piece_flops(self.shape, replace(work, length=nearest))
        return of(self.pieces[nearest]) * (1.0 if nearest == work.length else scale)


class Probe:
    """Measures the stages of a recipe.

    Args:
        model: its config and RoPE, as the stages before have made it.
    """

    def __init__(self, choice: ModelChoice, model: LoadedModel, shape: ModelShape, progress: Progress) -> None:
        self._choice, self._name, self._shape, self._progress = choice, model.source.name, shape, progress

    def search(self, settings: SearchSettings) -> Measured:
        """Samples of the target length, scored by the evaluator of a search."""
        return self._samples([settings.target_length], settings.data, settings.seed, settings.execution)

    def readjust(self, settings: ReadjustSettings) -> Measured:
        """Likewise at each window."""
        return self._samples(sorted(set(settings.windows)), settings.data, settings.seed, settings.execution)

    def _samples(self, lengths: Sequence[int], data: DataSettings, seed: int, execution: ExecutionSettings) -> Measured:
        from longrope.search.evaluator import ModelEvaluatorFactory

        began = time.perf_counter()
        model = open_model(self._name, execution, self._choice.revision)
        start = time.perf_counter() - began
        pieces: dict[int, list[float]] = {}
        for length in lengths:  # each has workers of its own
            began = time.perf_counter()
            samples: dict[str, Sample] = {
                each.digest: each for each in open_samples(data, model.tokenizer, length, seed, self._progress).search
            }
            start += time.perf_counter() - began
            candidate = Candidate.from_factors(extended(model.rope, length).present)
            factory = ModelEvaluatorFactory(model.source, model.rope.policy.reference, samples)
            tasks = {length: [Task(candidate, digest) for digest in samples]}
            one, taken = self._measured(model, factory, execution, tasks, lambda result: float(result.seconds))
            start += taken
            pieces |= one
        return Measured(shape=self._shape, pieces=pieces, start=start)

    def evaluate(self, settings: EvaluationSettings, suite: SuiteSettings) -> Measured:
        """Items of each length of a suite."""
        from longrope.evaluation.evaluator import SuiteEvaluatorFactory

        began = time.perf_counter()
        model = open_model(self._name, settings.execution, self._choice.revision)
        opened = suite_opener(settings, suite)(model, self._progress)
        start = time.perf_counter() - began
        tasks: dict[int, list[ItemTask]] = {}
        for item in opened.items:
            tasks.setdefault(item.length, []).append(ItemTask("none", item.key))
        factory = SuiteEvaluatorFactory(model.source, {"none": model.rope.policy}, opened)
        pieces, taken = self._measured(
            model, factory, settings.execution, tasks, lambda result: float(result["seconds"])
        )
        return Measured(shape=self._shape, pieces=pieces, start=start + taken)

    def _measured(
        self,
        model: LoadedModel,
        factory: EvaluatorFactory,
        execution: ExecutionSettings,
        tasks: Mapping[int, Sequence[Any]],
        seconds: Callable[[Any], float],
    ) -> tuple[dict[int, list[float]], float]:
        """Seconds of each piece by its length, and those until the workers began."""
        began = time.perf_counter()
        with make_pool(factory, execution, model.source.on_gpu, self._progress.note) as pool:

            def run(given: Iterator[Any]) -> list[float]:
                found = []
                for _, result in pool.run(given):
                    if isinstance(result, Failure):
                        raise RunFailedError(f"a piece that was to be measured failed: {result.reason}")
                    found.append(seconds(result))
                return found

            shortest = tasks[min(tasks)]
            first = run(islice(cycle(shortest), pool.workers))  # loads what is loaded at the first use
            start = time.perf_counter() - began - max(first)
            pieces = {}
            for length, every in sorted(tasks.items()):
                self._progress.note(f"measuring texts of {length} tokens on {pool.workers} worker(s)")
                pieces[length] = run(_for_a_while(every, pool.workers))
        return pieces, max(start, 0.0)

    def finetune(
        self, settings: FinetuneSettings, launch: LaunchSettings, processes: int, policy: FactorSchedule
    ) -> Measured:
        """Steps of the real training, in a process of its own, with as few segments in each as there can be two of.

        Args:
            settings: with a definite precision and stage of ZeRO.
            policy: windows that hold a segment.
        """
        least = World(size=processes).replicas(settings.sp) * settings.micro_batch
        batch = min(settings.global_batch, 2 * least)
        windows = len(settings.trained_windows)
        steps = 1 + math.ceil((STEPS - 1) / windows) * windows  # of which all but the first are timed
        with tempfile.TemporaryDirectory() as folder:
            output, factors = Path(folder) / "run", Path(folder) / "factors.json"
            policy.save(factors)
            short = replace(
                settings,
                model=self._name,
                revision=self._choice.revision,
                factors=str(factors),
                output=str(output),
                steps=steps,
                warmup=min(settings.warmup, steps),
                global_batch=batch,
                save_steps=0,
                log_steps=1,
                report_to=(),
            )
            self._progress.note(f"measuring {steps} training steps of {batch} segment(s)")
            taken = run_apart(short, launch)
            lines = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
            speeds = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
        each = [batch * settings.seq_length / speed for speed in speeds]
        seconds = [fmean(each[first : first + windows]) for first in range(0, len(each), windows)]
        scale = settings.global_batch / batch
        return Measured(
            shape=self._shape,
            steps=[scale * second for second in seconds],
            start=max(taken - steps * fmean(seconds), 0.0),
        )

    def export(self, policy: FactorSchedule, settings: ExportSettings) -> float:
        """Seconds of writing the model of the recipe under factors."""
        from longrope.export.huggingface import export_folder
        from longrope.model.load import ModelSource

        source = ModelSource(self._name, self._choice.revision, trust_remote_code=self._choice.trust_remote_code)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            export_folder(
                source,
                policy,
                Path(folder) / "model",
                short_window=settings.short_window,
                single_list=settings.single_list,
                attention_factor=settings.attention_factor,
                config_format=settings.config_format,
                code=bool(settings.code),
                config_only=settings.config_only,
                copy=settings.copy,
            )
            return time.perf_counter() - began


def _for_a_while(tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    """Tasks over and over, until enough of them were begun and enough time has passed."""
    began = time.perf_counter()
    for number, task in zip(count(), cycle(tasks), strict=False):
        enough = number >= PIECES * workers and time.perf_counter() - began >= SECONDS
        if enough or number >= _MOST * workers:
            return
        yield task


def run_apart(settings: FinetuneSettings, launch: LaunchSettings) -> float:
    """Seconds of a training run, in a process of its own, for training leaves much behind in its process."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as process:
        return process.submit(_run_quietly, settings, launch).result()


def _run_quietly(settings: FinetuneSettings, launch: LaunchSettings) -> float:
    os.dup2(2, 1)  # standard output is the plan's
    return run_here(settings, launch)


def run_here(settings: FinetuneSettings, launch: LaunchSettings) -> float:
    """The same in this process."""
    from longrope.finetune.run import finetune

    began = time.perf_counter()
    finetune(settings, launch, tell=lambda line: None)
    return time.perf_counter() - began
