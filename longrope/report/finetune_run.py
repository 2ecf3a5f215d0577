"""A fine-tuning run as its folder tells it, done or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.exceptions import InvalidInputError
from longrope.finetune.held_out import read_held_out
from longrope.finetune.monitor import METRICS_FILE
from longrope.finetune.run_record import ADAPTER, MODEL, RUN_FILE, RunRecord
from longrope.finetune.settings import FinetuneSettings


@dataclass(frozen=True)
class FinetuneRun:
    """A run.

    Attributes:
        record: ``run.json``.
        steps: what was logged of each step, in order.
        summary: what was logged at the end.
        held_out: perplexity by length, ``before`` and ``after``, as far as they were measured.
        done: whether it left its result.
    """

    folder: Path
    settings: FinetuneSettings
    record: dict[str, Any]
    steps: tuple[dict[str, Any], ...]
    summary: dict[str, Any]
    held_out: dict[str, dict[int, float]]
    done: bool


def open_finetune(folder: Path) -> FinetuneRun:
    """Read the folder of a fine-tuning run.

    Raises:
        InvalidInputError: if no step was logged yet, or a file cannot be read.
    """
    settings = RunRecord.read(folder).settings
    record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    lines = _lines(folder / METRICS_FILE)
    steps = tuple(line for line in lines if "loss" in line)
    if not steps:
        raise InvalidInputError(
            f"{folder} holds a fine-tuning run that has not logged a step: it is still starting, or failed; wait for "
            "it, or go on with it by --resume"
        )
    summary: dict[str, Any] = next((line for line in reversed(lines) if "train_runtime" in line), {})
    held_out = {
        name: {int(length): value for length, value in values.items()}
        for name, values in read_held_out(folder, settings.held_out).items()
    }
    done = any((folder / name).is_dir() for name in (MODEL, ADAPTER)) and steps[-1]["step"] >= settings.steps
    return FinetuneRun(folder, settings, record, steps, summary, held_out, done)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines only: the last may be being written."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found
