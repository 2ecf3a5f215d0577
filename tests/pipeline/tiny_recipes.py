"""A recipe with every kind of stage on a tiny model, and what tests see of its runs."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_search import InProcessPool

from longrope.evaluation import run as evaluation_run
from longrope.files import write_text_atomically
from longrope.finetune import worker
from longrope.pipeline.run import ExtendReport, extend
from longrope.pipeline.stages import Recipe
from longrope.report import write
from longrope.runs.progress import Progress
from longrope.search import run as search_run

SEARCH = "{algorithm: paper, population: 6, mutations: 2, crossovers: 2, iterations: 2, parents: 3, n_hat: [0]}"
RECIPE = f"""\
model: MODEL
data:
  documents: {{source: DOCUMENTS, samples: 2, held_out: 3}}
  evaluation: {{source: DOCUMENTS, samples: 3}}
  training: DOCUMENTS
execution: {{workers: 1, device: cpu}}
launch: {{device: cpu}}
stages:
  - evaluate: {{name: before, suite: perplexity, model: original, lengths: [64, 128], methods: [none, yarn]}}
  - search: {{target_length: 128, algorithm: {SEARCH}}}
  - finetune: {{seq_length: 128, steps: 5, global_batch: 2, warmup: 1, learning_rate: 1.0e-3, save_steps: 2}}
  - search: {{target_length: 256, algorithm: {SEARCH}}}
  - readjust: {{windows: [64], algorithm: {SEARCH}}}
  - evaluate: {{name: after, suite: perplexity, lengths: [64, 128, 256]}}
  - export:
  - evaluate: {{name: served, suite: perplexity, model: exported, lengths: [64, 128, 256]}}
"""
"""A window of 64 is searched to 128, trained, searched to 256 and readjusted."""
STAGES = ("before", "search-128", "finetune-128", "search-256", "readjust", "after", "export", "served")
START = "start"
"""What happens before the first stage."""
STEP = "step"
_HEADING = re.compile(r"\[\d+/\d+\] (?P<stage>[^:]+): .*?(?P<before>: done before, in \d+ s)?")


def write_recipe(path: Path, model: Path, documents: Path, text: str = RECIPE) -> Path:
    """A recipe file with places in it."""
    path.write_text(text.replace("MODEL", str(model)).replace("DOCUMENTS", str(documents)))
    return path


class Moments(Progress):
    """Remembers what a run tells and every moment of its stages, and kills its own process at one of them.

    Attributes:
        notes: the lines for the user.
        ran: stages that were begun or gone on with.
        moments: what happened, by stage: what a progress is told, files that took their names, steps of training.
    """

    def __init__(self, stage: str = "", moment: int = 0) -> None:
        self.notes: list[str] = []
        self.ran: list[str] = []
        self.stage = START
        self.moments: dict[str, list[str]] = {START: []}
        self._kill = (stage, moment)

    def note(self, message: str) -> None:
        self.notes.append(message)
        heading = _HEADING.fullmatch(message)
        if heading:
            self.stage = heading["stage"]
            self.moments[self.stage] = []
            if heading["before"] is None:
                self.ran.append(self.stage)
        self.happens("note")

    def begin(self, description: str, total: int | None) -> None:
        self.happens("begin")

    def advance(self) -> None:
        self.happens("advance")

    def describe(self, status: str) -> None:
        self.happens("describe")

    def end(self) -> None:
        self.happens("end")

    def happens(self, what: str) -> None:
        self.moments[self.stage].append(what)
        if self._kill == (self.stage, len(self.moments[self.stage])):
            self.strike()

    def strike(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Whole(NamedTuple):
    """A run from its beginning to its end.

    Attributes:
        recipe: the file.
        folder: of the run.
        seen: what happened.
    """

    recipe: Path
    folder: Path
    seen: Moments


def carry_out(
    recipe: Recipe,
    folder: Path,
    seen: Moments | None = None,
    processes: Callable[[], bool] = lambda: False,
    report: Callable[..., write.Report] | None = None,
) -> tuple[ExtendReport, Moments]:
    """Run a recipe, with evaluators in this process and hardly any report.

    Args:
        processes: whether the stage that opens its evaluators has them in processes of their own.
        report: writes the report instead.
    """
    seen = seen or Moments()
    with _watched(seen), _evaluators_here(processes), pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "write_report", report or _hardly_any_report)
        return extend(recipe, folder, seen), seen


@contextmanager
def _watched(seen: Moments) -> Iterator[None]:
    """Moments are also those right before a file takes its name, and the ends of training steps."""

    def watch(name: str) -> Callable[..., Any]:
        does = getattr(os, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            seen.happens(name)
            return does(*arguments, **options)

        return watched

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seen.happens(f"{STEP} {state.global_step}")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "link"):
            patch.setattr(os, name, watch(name))
        patch.setattr(worker._Sealing, "on_step_end", on_step_end)
        yield


@contextmanager
def _evaluators_here(processes: Callable[[], bool]) -> Iterator[None]:
    make_pool = search_run.make_pool

    def make(factory: Any, *others: Any) -> Any:
        return make_pool(factory, *others) if processes() else InProcessPool(factory)

    with pytest.MonkeyPatch.context() as patch:
        for module in (search_run, evaluation_run):
            patch.setattr(module, "make_pool", make)
        yield


def _hardly_any_report(runs: object, output: Path) -> write.Report:
    write_text_atomically(output / write.PAGE_FILE, "")
    return write.Report(output / write.PAGE_FILE, ())
