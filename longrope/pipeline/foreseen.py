"""What would stop a run in a later stage, as far as a second tells: asked before the first one starts.

Of the model only the config is read, and no data: ``longrope extend --dry-run`` knows more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from longrope.exceptions import InvalidInputError
from longrope.finetune.run import check_memory, check_settings, with_zero_as_begun
from longrope.model.load import ModelSource, check_attention, resolve_numbers
from longrope.model.rope_config import ModelRope, read_rope
from longrope.pipeline.dry_run import check_execution
from longrope.pipeline.extended import extended, with_training_windows
from longrope.pipeline.inputs import model_source
from longrope.pipeline.plan import Plan, plan
from longrope.pipeline.problems import Problems, told
from longrope.pipeline.room import Room, misfit
from longrope.pipeline.stages import EvaluateStage, FinetuneStage, ReadjustStage, Recipe, SearchStage, Stage
from longrope.pipeline.standing import Standings
from longrope.runs.model import LoadedModel
from longrope.search.readjust import check_windows
from longrope.search.search import check_target
from longrope.workers.settings import ExecutionSettings

_CANNOT = "cannot run: "


@dataclass
class Foreseen:
    """What is known to go wrong.

    Attributes:
        problems: what will stop the run.
        notes: what may.
    """

    problems: Problems = field(default_factory=Problems)
    notes: list[str] = field(default_factory=list)


def foresee(recipe: Recipe, standings: Standings, output: Path) -> Foreseen:
    """What would stop the stages that are left; nothing of those that are done.

    Memory of a cluster is not known here, and nothing is said of it. Nor is a run refused for the memory of a host
    whose CPU scores texts: it is shared and can be swapped. What GPUs leave there is pinned and cannot.

    Args:
        output: the folder of the run.

    Raises:
        InvalidInputError: if the model cannot be understood.
    """
    found, left = Foreseen(), standings.left()
    if not left:
        return found
    source = model_source(recipe.model)
    config = source.load_config()
    trained = rope = read_rope(config, source.folder(weights=False))
    for stage in recipe.stages:
        with found.problems.noting(stage):
            match stage:
                case SearchStage() if stage in left:
                    check_target(LoadedModel(source, trained, None, "", config), stage.settings.target_length)
                    _check_execution(stage.settings.execution, source, config)
                case ReadjustStage() if stage in left:
                    check_windows(rope.schedule(), stage.settings.windows)
                    _check_execution(stage.settings.execution, source, config)
                case EvaluateStage() if stage in left:
                    _check_execution(stage.settings.execution, source, config)
                case FinetuneStage() if stage in left:
                    _check_finetuning(stage, rope, config, output)
        trained, rope = _after(stage, trained, rope)
    try:
        planned = plan(recipe)
    except InvalidInputError as error:
        if not found.problems:  # otherwise the plan ends at a stage that was refused already
            found.problems.note("recipe", str(error))
        return found
    for stage in left:
        _check_plan(stage, planned, found)
    Room(output).check_disk(recipe, planned, config, standings, found.problems.note)
    return found


def _after(stage: Stage, trained: ModelRope, rope: ModelRope) -> tuple[ModelRope, ModelRope]:
    """The RoPE that the model was trained under last, and that with factors searched since then."""
    if isinstance(stage, SearchStage):
        return trained, extended(trained, stage.settings.target_length)
    if not isinstance(stage, FinetuneStage):
        return trained, rope
    try:
        trained = with_training_windows(stage, rope)
    except InvalidInputError:  # said already, if it is not done
        trained = extended(rope, stage.settings.seq_length)
    return trained, trained


def _check_execution(execution: ExecutionSettings, source: ModelSource, config: Any) -> None:
    dtype, device = resolve_numbers(
        execution.dtype,
        execution.device,
        execution.attention,
        execution.gpus_per_model,
        execution.ray_address is not None,
    )
    check_attention(config, execution.attention)
    check_execution(execution, replace(source, dtype=dtype, device=device, attention=execution.attention))


def _check_finetuning(stage: FinetuneStage, rope: ModelRope, config: Any, output: Path) -> None:
    launch, policy = stage.launch, with_training_windows(stage, rope).schedule()
    device = launch.choose_device()
    processes = launch.resolve(torch.cuda.device_count() if device == "cuda" else 0, stage.settings.zero)
    settings = replace(stage.settings, output=str(output / stage.name))
    settings = with_zero_as_begun(settings).on(processes.processes)
    precision = check_settings(settings, processes, device, config, policy)
    if processes.launcher != "ray":
        check_memory(settings, processes, device, config, precision)


def _check_plan(stage: Stage, planned: Plan, found: Foreseen) -> None:
    if not isinstance(stage, (SearchStage, ReadjustStage, EvaluateStage)):
        return
    notes = next(each.notes for each in planned.stages if each.name == stage.name)
    for line in notes:
        if line.startswith(_CANNOT):
            found.problems.note(stage, line.removeprefix(_CANNOT))
    too_much = misfit(stage, planned)
    if too_much is None:
        return
    if planned.device != "cpu" and stage.settings.execution.device in ("auto", "cuda"):
        found.problems.note(stage, too_much)
    else:
        found.notes.append(told(stage, too_much))
