"""Whether there is room for a run: a folder to write to, disk for what its stages leave, memory for what they score."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longrope.exceptions import RunExistsError, SettingsError
from longrope.pipeline.disk import saved_bytes
from longrope.pipeline.inputs import model_source
from longrope.pipeline.plan import Plan
from longrope.pipeline.stages import (
    EvaluateStage,
    ExportStage,
    FinetuneStage,
    ReadjustStage,
    Recipe,
    SearchStage,
    Stage,
)
from longrope.pipeline.standing import Standings, refuse_other
from longrope.pipeline.state import DONE
from longrope.sizes import format_size

Note = Callable[[Stage | str, str], None]
"""Is told where a problem is, and which."""
MISFIT = "does not fit"


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

    def check_disk(self, recipe: Recipe, planned: Plan, config: Any, standings: Standings | None, note: Note) -> None:
        """Note a disk that is too small for what is left to do.

        Args:
            planned: all stages.
            config: of the model.
            standings: what the folder has already; None where that is not known.
        """
        disk = {stage.name: stage.disk for stage in planned.stages}
        for stage in recipe.stages:
            if isinstance(stage, FinetuneStage) and stage.settings.adapts:  # adapters are folded in after it
                disk[stage.name] += planned.parameters * saved_bytes(config)
            elif isinstance(stage, ExportStage) and self._links(stage, recipe):
                disk[stage.name] = 0.0
        for each in standings.stages if standings is not None else ():
            name = each.stage.name
            disk[name] = 0.0 if each.state.state == DONE else max(disk[name] - each.written(), 0.0)
        needed = sum(disk.values())
        free = shutil.disk_usage(self._there).free
        if needed > free:
            largest = max(disk, key=lambda name: disk[name])
            hint = f"{largest} leaves {format_size(disk[largest])}"
            if any(stage.name == largest and stage.kind == FinetuneStage.kind for stage in recipe.stages):
                hint += f", less with {largest}.save_limit=1"
            note(
                "output",
                f"the run will leave {format_size(needed)} in {self._there}, and {format_size(free)} are free; {hint}",
            )

    def _links(self, stage: ExportStage, recipe: Recipe) -> bool:
        """Whether an export takes no room, for its weights are those of a model on the same file system."""
        if stage.settings.copy:
            return False
        before = recipe.stages[: recipe.stages.index(stage)]
        trained = any(isinstance(each, FinetuneStage) for each in before)
        place = self._there if trained else model_source(recipe.model).folder(weights=False)
        return place.stat().st_dev == self._there.stat().st_dev


def misfit(stage: Stage, planned: Plan) -> str | None:
    """What of a stage that scores texts does not fit into memory; None where all does.

    Of fine-tuning that is checked with its other settings. The memory of a cluster is not known here.
    """
    if not isinstance(stage, (SearchStage, ReadjustStage, EvaluateStage)):
        return None
    if stage.settings.execution.ray_address is not None:
        return None
    notes = next(each.notes for each in planned.stages if each.name == stage.name)
    return next((line for line in notes if line.startswith(MISFIT)), None)
