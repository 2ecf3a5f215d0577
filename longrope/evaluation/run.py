"""An evaluation from its settings to its table: every item is measured once in the life of the run's folder."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from longrope.evaluation.evaluator import SuiteEvaluatorFactory
from longrope.evaluation.methods import open_methods
from longrope.evaluation.settings import EvaluationSettings
from longrope.evaluation.suite import Suite, Task, by_key
from longrope.exceptions import OtherRunError, RunExistsError, RunFailedError
from longrope.files import write_text_atomically
from longrope.model.rope_config import attention_span
from longrope.rope.factors import RopeFactors
from longrope.rope.policy import FactorSchedule
from longrope.runs.journal import Journal
from longrope.runs.model import LoadedModel, numeric_settings, open_model
from longrope.runs.progress import Progress
from longrope.runs.provenance import machine, versions
from longrope.workers.pool import Failure
from longrope.workers.start import make_pool

JOURNAL_FILE = "evaluation.jsonl"
TABLE_FILE = "results.csv"
RESULTS_FILE = "results.json"
RECORDS_FILE = "records.csv"
GIVE_UP_AFTER = 3
"""Items of a length that fail, each several times, before the others are not tried."""


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found; all of it is in ``folder`` too.

    Attributes:
        table: a row a method and whatever the suite compares, such as lengths.
        records: a row an item and method.
        failures: reasons by label, of items that failed for good.
    """

    folder: Path
    suite: str
    table: pd.DataFrame
    records: pd.DataFrame
    failures: dict[str, str]


def evaluate(
    settings: EvaluationSettings,
    open_suite: Callable[[LoadedModel, Progress], Suite],
    progress: Progress | None = None,
    command: Sequence[str] | None = None,
) -> EvaluationReport:
    """Measure every item of a suite under every method, or what a run in the output folder has not measured yet.

    Args:
        open_suite: makes the suite for a model; it reads data, and may refuse them.
        command: the command line that asked for this, for the record.

    Raises:
        InvalidInputError: if something that was given cannot be used; nothing was started then.
        RunFailedError: if no item could be measured.
    """
    progress = progress or Progress()
    folder = Path(settings.output)
    journal_file = folder / JOURNAL_FILE
    _refuse_other(folder, journal_file, settings.resume)
    model = open_model(settings.model, settings.execution, settings.revision)
    policies = open_methods(model.rope, settings.lengths, settings.factors, settings.methods, model.config)
    span = attention_span(model.config)
    if span is not None and max(settings.lengths) > span:
        progress.note(f"the model attends to the last {span} tokens only; longer lengths are marked as truncated")
    suite = open_suite(model, progress)
    header = {
        "kind": "evaluation",
        "suite": suite.name,
        "model": model.fingerprint,
        "lengths": list(settings.lengths),
        "seed": settings.seed,
        "policies": {name: _digest(policy, settings.lengths) for name, policy in policies.items()},
        **suite.describe(),
        **numeric_settings(model, settings.execution),
    }
    folder.mkdir(parents=True, exist_ok=True)
    resumed = settings.resume and journal_file.exists()
    started = time.perf_counter()
    lengths = {key: item.length for key, item in by_key(suite.items).items()}
    with Journal.resume(journal_file, header) if resumed else Journal.create(journal_file, header) as journal:
        found = _read(journal)
        tasks = [Task(method, item.key) for method in policies for item in suite.items]
        # Long texts first: what is left to do takes less than what was done, and what does not fit is known at once.
        missing = sorted((task for task in tasks if task not in found), key=lambda task: -lengths[task.item])
        progress.note(f"{suite.name}: {len(suite.items)} items under {', '.join(policies)}; {len(missing)} to measure")
        if missing:
            factory = SuiteEvaluatorFactory(model.source, policies, suite)
            progress.begin(suite.name, len(tasks))
            for _ in range(len(tasks) - len(missing)):
                progress.advance()
            with make_pool(factory, settings.execution, model.source.on_gpu, progress.note) as pool:
                for task, result in pool.run(_worth_trying(missing, lengths, found)):
                    found[task] = result
                    journal.append(_event(task, result))
                    progress.advance()
            progress.end()
            journal.sync()
    failures = {task.label: result.reason for task, result in found.items() if isinstance(result, Failure)}
    measured = [
        {"method": task.method, "item": task.item, "length": lengths[task.item], **result}
        for task in tasks
        if not isinstance(result := found[task], Failure)
    ]
    if not measured:
        raise RunFailedError(f"no item could be measured: {next(iter(failures.values()))}; mend it and --resume")
    records = pd.DataFrame(measured)
    table = _complete(suite.table(records), tasks, lengths, found, span)
    report = EvaluationReport(folder, suite.name, table, records, failures)
    _write(report, header, model, settings, command, time.perf_counter() - started)
    return report


def _worth_trying(
    missing: Sequence[Task], lengths: Mapping[str, int], found: dict[Task, dict[str, Any] | Failure]
) -> Iterator[Task]:
    """Tasks, but no more of a length at which the first ones failed and none came to an end: it does not fit."""
    fits = set()
    for task in missing:
        length = lengths[task.item]
        if length not in fits:
            results = [result for other, result in found.items() if lengths[other.item] == length]
            if not all(isinstance(result, Failure) for result in results):
                fits.add(length)
            elif len(results) >= GIVE_UP_AFTER:
                found[task] = Failure(f"not tried: the first {GIVE_UP_AFTER} of this length failed")
                continue
        yield task


def _refuse_other(folder: Path, journal: Path, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunExistsError(f"output {folder} is a file; give a folder")
    if journal.exists() and not resume:
        raise RunExistsError(
            f"output folder {folder} holds an evaluation; go on with it by --resume, or choose another"
        )
    if folder.exists() and not journal.exists() and any(folder.iterdir()):
        why = "is not empty and holds no evaluation"
        raise OtherRunError(f"output folder {folder} {why}; choose another", why)


def _complete(
    table: pd.DataFrame,
    tasks: Sequence[Task],
    lengths: Mapping[str, int],
    found: Mapping[Task, dict[str, Any] | Failure],
    span: int | None,
) -> pd.DataFrame:
    """The table with rows for what failed wholly, how much failed, and which lengths attention cannot see."""
    if "length" not in table:
        return table
    asked = Counter((task.method, lengths[task.item]) for task in tasks)
    failed = Counter((task.method, lengths[task.item]) for task in tasks if isinstance(found[task], Failure))
    if failed:
        keys = pd.MultiIndex.from_tuples(list(asked), names=["method", "length"])
        table = table.merge(keys.to_frame(index=False), on=["method", "length"], how="right")
        table["failed"] = [failed[key] for key in zip(table["method"], table["length"], strict=True)]
    if span is not None and "truncated" not in table and (table["length"] > span).any():
        table["truncated"] = table["length"] > span
    return table


def _digest(policy: Any, lengths: tuple[int, ...]) -> str:
    """Of the numbers that a policy uses at each length, and in every window, for texts may be shorter than that."""
    every: list[tuple[list[int], RopeFactors]] = [([], policy.factors_for(length)) for length in lengths]
    if isinstance(policy, FactorSchedule):
        every += [([window.max_length], window.factors) for window in policy.windows]
    numbers = [[*window, each.attention_factor, each.n_hat, *each.lambdas] for window, each in every]
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16]


def _read(journal: Journal) -> dict[Task, dict[str, Any] | Failure]:
    """What was measured before; items that failed are tried again."""
    return {
        Task(event["method"], event["item"]): event["result"] for event in journal.events if event["kind"] == "result"
    }


def _event(task: Task, result: dict[str, Any] | Failure) -> dict[str, Any]:
    named = {"method": task.method, "item": task.item}
    if isinstance(result, Failure):
        return {"kind": "failure", **named, "reason": result.reason}
    return {"kind": "result", **named, "result": result}


def _write(
    report: EvaluationReport,
    header: dict[str, Any],
    model: LoadedModel,
    settings: EvaluationSettings,
    command: Sequence[str] | None,
    seconds: float,
) -> None:
    folder = report.folder
    write_text_atomically(folder / TABLE_FILE, report.table.to_csv(index=False))
    write_text_atomically(folder / RECORDS_FILE, report.records.map(_cell).to_csv(index=False))
    record = {
        **header,
        "model": model.describe(),
        "factors": settings.factors,
        "command": None if command is None else list(command),
        "results": [_without_nan(row) for row in report.table.to_dict("records")],
        "failures": report.failures,
        "wall_seconds": round(seconds, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "versions": versions(),
    }
    write_text_atomically(folder / RESULTS_FILE, json.dumps(record, indent=2, allow_nan=False) + "\n")


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (dict, list)) else value


def _without_nan(row: dict[Any, Any]) -> dict[str, Any]:
    """JSON has no numbers that are none."""
    return {
        str(name): None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
