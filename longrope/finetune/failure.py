"""How a process of a run tells the command that started it why it stopped."""

from __future__ import annotations

import json
import shutil
import traceback
from pathlib import Path

import torch

from longrope.exceptions import InvalidInputError, LongRopeError, RunFailedError
from longrope.files import write_text_atomically
from longrope.finetune.world import World

_FOLDER = "failures"


def report_failure(folder: Path, error: Exception) -> None:
    """Leave in the folder of the run what stopped this process."""
    reports = folder / _FOLDER
    reports.mkdir(exist_ok=True)
    report = {
        "invalid": isinstance(error, InvalidInputError),
        "message": _message(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    write_text_atomically(reports / f"rank-{World.from_environment().rank}.json", json.dumps(report, indent=2))


def forget_failures(folder: Path) -> None:
    """Remove the reports of an earlier attempt."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def raise_failure(folder: Path) -> None:
    """Raise what the process of the lowest rank reported; nothing happens without a report.

    Raises:
        InvalidInputError: if what the user gave cannot be used.
        RunFailedError: if training failed.
    """
    reports = sorted((folder / _FOLDER).glob("rank-*.json"), key=lambda path: int(path.stem.partition("-")[2]))
    if not reports:
        return
    # What the user can mend says more than what followed from it elsewhere.
    read = [json.loads(path.read_text(encoding="utf-8")) for path in reports]
    first = next((report for report in read if report["invalid"]), read[0])
    if first["invalid"]:
        raise InvalidInputError(first["message"])
    raise RunFailedError(f"training stopped: {first['message']} (all of it in {reports[0].parent})")


def _message(error: Exception) -> str:
    if isinstance(error, LongRopeError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "a GPU ran out of memory; --resume with --offload-activations, --tile-mlp 4k or a smaller --tile-loss, or "
            "start anew with --sp, --zero 3, --offload or --method lora"
        )
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
