"""Checkpoints of a run: which are complete, what the data had reached, which are old.

Trainer writes a checkpoint from several processes, file by file. One that was interrupted looks much like a whole one,
so a file is written last, when every process is done; only checkpoints that have it count.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrope.exceptions import OtherRunError, RunExistsError
from longrope.files import write_text_atomically

STATE_FILE = "longrope-run.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        step: optimizer steps done.
        stream: state of the data after these steps.
    """

    folder: Path
    step: int
    stream: Any


def seal(checkpoint: Checkpoint, run: str, processes: int) -> None:
    """Declare a checkpoint complete; for one process, after all have written.

    Args:
        run: the run that it belongs to.
        processes: that wrote it.
    """
    state = {"run": run, "step": checkpoint.step, "processes": processes, "stream": checkpoint.stream}
    write_text_atomically(checkpoint.folder / STATE_FILE, json.dumps(state) + "\n")


def newest_checkpoint(folder: Path, run: str, processes: int | None = None) -> Checkpoint | None:
    """The complete checkpoint with the most steps below ``folder``; None where there is none.

    Args:
        run: the run that goes on.
        processes: that are to read it, where as many must have written it; None where any number can.

    Raises:
        RunExistsError: if it belongs to another run.
        OtherRunError: if another number of processes wrote it.
    """
    sealed = [path for path in _by_step(folder) if (path / STATE_FILE).is_file()]
    if not sealed:
        return None
    newest = sealed[-1]
    state = json.loads((newest / STATE_FILE).read_text(encoding="utf-8"))
    if state["run"] != run:
        raise RunExistsError(
            f"checkpoint {newest} belongs to another run than {folder.parent}; resume in the folder of that run, or "
            "give an empty output"
        )
    if processes is not None and state["processes"] != processes:
        why = f"in the parts of {state['processes']} processes, which {processes} cannot read"
        raise OtherRunError(f"checkpoint {newest} is {why}; resume with {state['processes']}", why)
    return Checkpoint(newest, int(state["step"]), state["stream"])


def remove_old(folder: Path, limit: int) -> None:
    """Keep the newest ``limit`` complete checkpoints, and drop older ones and those that were never completed."""
    paths = _by_step(folder)
    sealed = [path for path in paths if (path / STATE_FILE).is_file()]
    kept = set(sealed[-limit:])
    for path in paths:
        if path not in kept:
            (path / STATE_FILE).unlink(missing_ok=True)  # half-removed, it must not count any more
            shutil.rmtree(path)


def remove_torn(folder: Path) -> None:
    """Drop checkpoints that an interrupted run left incomplete."""
    for path in _by_step(folder):
        if not (path / STATE_FILE).is_file():
            shutil.rmtree(path)


def _by_step(folder: Path) -> list[Path]:
    found = {}
    for path in folder.glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return [found[step] for step in sorted(found)]
