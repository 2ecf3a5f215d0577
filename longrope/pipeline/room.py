"""Whether there is room for a run: a folder to write to, disk for what its stages leave, memory for what they score."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longrope.exceptions import RunExistsError, SettingsError
from longrope.finetune.memory import GIB
from longrope.pipeline.disk import saved_bytes
from longrope.pipeline.inputs import key_of, stage_inputs
from longrope.pipeline.plan import plan
from longrope.pipeline.run import as_begun, refuse_other
from longrope.pipeline.stages import (
    EvaluateStage,
    FinetuneStage,
    ReadjustStage,
    Recipe,
    SearchStage,
    Stage,
)
from longrope.pipeline.state import DONE, RunState


class Room:
    """The folder of a run, and the machine that it is on."""

    def __init__(self, output: Path) -> None:
        self._output = output.resolve()
        # What is there already, in which the folder will be made.
        self._there = next(path for path in (self._output, *self._output.parents) if path.exists())

    def check_folder(self) -> None:
        """Refuse a folder that cannot be written.

        Raises:
            RunExistsError: if something else is there.
            SettingsError: if this user may not write there.
        """
        if not self._there.is_dir():
            raise RunExistsError(f"{self._there} is a file; give another output")
        refuse_other(self._output)
        if not os.access(self._there, os.W_OK | os.X_OK):
            raise SettingsError(f"{self._there} cannot be written; give another output")

    def check(self, recipe: Recipe, config: Any, note: Callable[[Stage | str, str], None]) -> None:
        """Note what does not fit into memory while it is scored, and a disk that is too small.

        Memory of fine-tuning is checked with its other settings.

        Args:
            config: of the model.
            note: is told of problems, and where they are.

        Raises:
            InvalidInputError: if the model cannot be understood.
        """
        planned = plan(recipe)
        found = {stage.name: stage for stage in planned.stages}
        disk = {name: stage.disk for name, stage in found.items()}
        for stage in recipe.stages:
            if isinstance(stage, FinetuneStage) and stage.settings.method != "full":  # adapters are folded in after it
                disk[stage.name] += planned.parameters * saved_bytes(config)
            if not isinstance(stage, (SearchStage, ReadjustStage, EvaluateStage)):
                continue
            misfits = [line for line in found[stage.name].notes if line.startswith("does not fit")]
            if misfits and stage.settings.execution.ray_address is None:  # the memory of a cluster is not known here
                note(stage, misfits[0])
        state = RunState.read(self._output)
        if state is not None:
            inputs = stage_inputs(as_begun(recipe, state))
            for name in disk:
                known = state.stages.get(name)
                if known is None or known.key != key_of(inputs[name]):
                    continue  # done anew, beside what is there
                disk[name] = 0.0 if known.state == DONE else max(disk[name] - _written(self._output / name), 0.0)
        needed = sum(disk.values())
        free = shutil.disk_usage(self._there).free
        if needed > free:
            largest = max(disk, key=lambda name: disk[name])
            hint = f"{largest} leaves {_gib(disk[largest])}"
            if found[largest].kind == FinetuneStage.kind:
                hint += f", less with {largest}.save_limit=1"
            note("output", f"the run will leave {_gib(needed)} in {self._there}, and {_gib(free)} are free; {hint}")


def _written(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
