"""Tasks of lm-evaluation-harness (ARC, HellaSwag, MMLU, TruthfulQA, RULER, one's own) with the policy attached.

An item is a task, and for tasks that make their own texts a task and a length. Responses are kept in the run's folder
as they come, so that a task that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd

from longrope.evaluation.harness_model import harness_model
from longrope.evaluation.harness_responses import Responses
from longrope.evaluation.harness_tasks import HarnessGroup, HarnessTask, tasks_folder
from longrope.evaluation.settings import HarnessSettings
from longrope.evaluation.suite import Item, Suite, by_key
from longrope.lengths import format_length
from longrope.rope.policy import RopePolicy

RESPONSES_FOLDER = "responses"
RESAMPLES = 1000
"""Of the harness's bootstrap, for metrics whose standard error has no formula."""


class HarnessSuite(Suite):
    """Tasks, under one policy at a time.

    Args:
        tasks: to be run.
        groups: whose means over those tasks are wanted.
        windows: lengths that tell policies apart; the longest is that of an input.
        seed: of few-shot examples and of texts that tasks make.
        folder: of the run; None keeps no responses.
    """

    name = "harness"

    def __init__(
        self,
        tasks: Sequence[HarnessTask],
        groups: Sequence[HarnessGroup],
        settings: HarnessSettings,
        windows: Sequence[int],
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        self._settings, self._groups, self._windows, self._seed, self._folder = settings, groups, windows, seed, folder
        self._max_length = max(windows)
        self._tasks: dict[str, HarnessTask] = {}
        self.items = []
        for task in tasks:
            for length in (settings.lengths or [self._max_length]) if task.makes_texts else [None]:
                key = task.name if length is None else f"{task.name}/{format_length(length)}"
                self.items.append(Item(key, length or self._max_length))
                self._tasks[key] = task
        self._lengths = {key: item.length for key, item in by_key(self.items).items()}

    def describe(self) -> dict[str, Any]:
        from importlib.metadata import version

        chosen = self._settings
        return {
            "lm_eval": version("lm_eval"),
            "tasks": {key: _digest_of_file(task.source) for key, task in self._tasks.items()},
            "max_length": self._max_length,
            "num_fewshot": chosen.num_fewshot,
            "limit": chosen.limit,
            "chat_template": chosen.chat_template,
            "metadata": dict(chosen.metadata),
        }

    def measure(self, model: Any, tokenizer: Any, policy: RopePolicy, item: str) -> dict[str, Any]:
        with _quiet(), Responses(self._responses_file(policy, item)) as responses:
            tasks = self._load(item, tokenizer)
            lm = harness_model(model, tokenizer, policy, self._max_length, self._settings.batch_size, responses)
            results = self._evaluate(lm, tasks)
        scores = [
            {
                "task": task,
                "shots": results["n-shot"].get(task),
                **score,
                "samples": metrics.get("sample_len"),
                "truncated": sum(len(lm.truncated[name]) for name in _tasks_in(results, task)),
            }
            for task, metrics in results["results"].items()
            for score in self._scores(metrics, item)
        ]
        return {"scores": scores}

    def table(self, records: pd.DataFrame) -> pd.DataFrame:
        """A row a method, length, task and metric; the means of groups follow their tasks."""
        rows = []
        for (method, length), group in records.groupby(["method", "length"], sort=False):
            found = {self._tasks[row.item].name: row.scores for row in group.itertuples()}
            scores = [score for each in found.values() for score in each]
            means = [mean for each in self._groups for mean in group_means(each, found)]
            rows += [{"method": method, "length": length, **score} for score in [*scores, *means]]
        return pd.DataFrame(rows)

    def _responses_file(self, policy: RopePolicy, item: str) -> Path | None:
        # A worker on another machine may not see the folder; it then starts an interrupted task anew.
        if self._folder is None or not self._folder.is_dir():
            return None
        factors = [policy.factors_for(length) for length in self._windows]
        told = [[each.attention_factor, each.n_hat, *each.lambdas] for each in factors]
        digest = hashlib.sha256(json.dumps([item, told]).encode()).hexdigest()[:16]
        readable = "".join(letter if letter.isalnum() else "-" for letter in item)[-60:].strip("-")
        return self._folder / RESPONSES_FOLDER / f"{readable}-{digest}.jsonl"

    def _load(self, item: str, tokenizer: Any) -> dict[str, Any]:
        """The harness's tasks of an item, which read their data or make them now."""
        metadata = dict(self._settings.metadata)
        if not self._tasks[item].makes_texts:
            return self._loaded(item, metadata)
        # Tasks that make texts load the tokenizer by name, and would run code that lies with the model; what the user
        # has loaded already is saved without.
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            given = {"tokenizer": folder, **metadata, "max_seq_lengths": [self._lengths[item]]}
            return self._loaded(item, given)

    def _loaded(self, item: str, metadata: dict[str, Any]) -> dict[str, Any]:
        import random

        import numpy as np
        from lm_eval.tasks import TaskManager

        task, settings = self._tasks[item], self._settings
        # Before each task, so that its texts do not depend on what this worker did before.
        random.seed(self._seed)
        np.random.seed(self._seed)
        include = list(settings.include_path) if task.whole_group else []
        manager = TaskManager(include_path=include, include_defaults=task.whole_group, metadata=metadata)
        loaded: dict[str, Any] = manager.load([task.source if task.whole_group else str(tasks_folder() / task.source)])
        for each in loaded["tasks"].values():
            own = each.get_config("num_fewshot")
            if settings.num_fewshot is not None and own != 0:  # 0 is a task's way to say that it takes none
                each.set_config(key="num_fewshot", value=settings.num_fewshot)
            elif own is None:
                each.set_config(key="num_fewshot", value=0)
            each.set_fewshot_seed(seed=self._seed)
        return loaded

    def _evaluate(self, lm: Any, tasks: dict[str, Any]) -> dict[str, Any]:
        import torch
        from lm_eval.evaluator import evaluate

        torch.manual_seed(self._seed)
        results: dict[str, Any] = evaluate(
            lm,
            tasks,
            limit=self._settings.limit,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
            apply_chat_template=self._settings.chat_template,
            fewshot_as_multiturn=self._settings.chat_template,
        )
        return results

    def _scores(self, metrics: Mapping[str, Any], item: str) -> Iterator[dict[str, Any]]:
        """Metric, value and standard error of each metric of a task."""
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            if self._tasks[item].makes_texts and metric.isdecimal():  # RULER names its metric by the length
                if int(metric) != self._lengths[item]:
                    continue
                metric = "score"
            yield {
                "metric": metric if chosen == "none" else f"{metric} ({chosen})",
                "value": _number(value),
                "error": _number(metrics.get(f"{key.partition(',')[0]}_stderr,{chosen}")),
            }


def group_means(group: HarnessGroup, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The scores of a group, as its definition weights its tasks.

    Args:
        found: scores of each task; nothing is said of a group where one is missing.
    """
    if not all(task in found for task in group.tasks):
        return
    # RULER's definition names its shortest length only.
    by_size = {"score" if name.isdecimal() else name: weighted for name, weighted in group.by_size.items()}
    scores = [score for task in group.tasks for score in found[task]]
    for metric in dict.fromkeys(score["metric"] for score in scores):
        name = metric.partition(" (")[0]
        these = [score for score in scores if score["metric"] == metric]
        if name not in by_size or any(score["value"] is None for score in these):
            continue
        sizes = [score["samples"] if by_size[name] else 1 for score in these]
        shares = [size / sum(sizes) for size in sizes]
        errors = [math.nan if score["error"] is None else score["error"] for score in these]
        shots = {score["shots"] for score in these}
        yield {
            "task": group.name,
            "shots": shots.pop() if len(shots) == 1 else None,
            "metric": metric,
            "value": sum(share * score["value"] for share, score in zip(shares, these, strict=True)),
            "error": math.sqrt(sum((share * error) ** 2 for share, error in zip(shares, errors, strict=True))),
            "samples": sum(score["samples"] for score in these),
            "truncated": sum(score["truncated"] for score in these),
        }


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness logs, prints and draws a bar for every task; what goes wrong is raised."""
    from transformers.utils import logging as transformers_logging

    logger, verbosity = logging.getLogger("lm_eval"), transformers_logging.get_verbosity()
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    transformers_logging.set_verbosity_error()  # that inputs are over the length in the tokenizer's config is the point
    # Its bootstrap starts processes, which those of a pool may not.
    processes = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
        transformers_logging.set_verbosity(verbosity)
        if processes is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = processes


def _tasks_in(results: Mapping[str, Any], name: str) -> Iterator[str]:
    """A task, or the tasks of a group."""
    members = results["group_subtasks"].get(name)
    if members is None:
        yield name
    for member in members or ():
        yield from _tasks_in(results, member)


def _number(value: Any) -> float | None:
    """JSON has no numbers that are none, and the harness writes N/A."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _digest_of_file(source: str) -> str | None:
    """Of the user's own task, so that a resumed run has the same; the version tells that of the harness's."""
    path = Path(source)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_absolute() else None
