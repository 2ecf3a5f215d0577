"""``longrope extend``: the stages of a recipe one after the other, each done once in the life of the run's folder."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from longrope.evaluation.settings import DocumentSettings
from longrope.exceptions import OtherRunError, SettingsError
from longrope.export.card import put_results
from longrope.files import write_text_atomically
from longrope.pipeline.foreseen import foresee
from longrope.pipeline.inputs import model_source, stage_inputs
from longrope.pipeline.perform import RECIPE_FILE, Point, after, perform
from longrope.pipeline.stages import (
    EXPORTED,
    EvaluateStage,
    ExportStage,
    FinetuneStage,
    ReadjustStage,
    Recipe,
    SearchStage,
    Stage,
)
from longrope.pipeline.standing import (
    REPLACED,
    TEXTS,
    Standings,
    as_begun,
    aside,
    commit,
    pinned,
    record,
    refuse_other,
    standings,
)
from longrope.pipeline.state import DONE, FAILED, LOCK_FILE, RUNNING, RunState, StageState, is_at_work, last_sign
from longrope.pipeline.summary import results_section
from longrope.runs.locks import FolderLock
from longrope.runs.progress import Progress

REPORT, PAGE_FILE = "report", "report.html"
__all__ = ["TEXTS", "ExtendReport", "as_begun", "extend", "on_cluster", "refuse_other"]


@dataclass(frozen=True)
class ExtendReport:
    """What a run has left.

    Attributes:
        folder: of the run.
        state: of its stages, with their results.
        exported: the model folder of the last export; None without one.
        page: the HTML report; None where what it needs is not installed.
    """

    folder: Path
    state: RunState
    exported: Path | None
    page: Path | None


def extend(recipe: Recipe, output: str | Path, progress: Progress | None = None, force: bool = False) -> ExtendReport:
    """Carry out a recipe, or what is left of it in the output folder.

    A stage that was done with the same inputs is not run again. One whose inputs changed is, with all that depends on
    it; what it made before is moved to ``replaced/`` and comes back when the old settings do.

    Args:
        recipe: from :func:`longrope.pipeline.recipe.read_recipe`.
        output: the folder of the run; each stage has a folder of its name in it.
        force: begin also where a stage does not seem to fit this machine.

    Raises:
        InvalidInputError: if something that was given cannot be used.
        RunFailedError: if a stage failed; the same call goes on with it.
    """
    progress = progress or Progress()
    folder = Path(output).resolve()
    refuse_other(folder)
    model = commit(recipe, RunState.read(folder))
    recipe = pinned(recipe, model)
    inputs = stage_inputs(recipe)
    if not is_at_work(folder):  # which is refused below, and takes memory
        before = RunState.read(folder) or RunState(recipe.name)
        _foresee(recipe, standings(recipe, inputs, before, folder), folder, progress, force)
    lock = FolderLock(folder / LOCK_FILE)
    lock.acquire()
    try:
        before = RunState.read(folder) or RunState(recipe.name)
        known = dict(before.stages)
        state = _take_over(standings(recipe, inputs, before, folder), before, recipe, folder, progress)
        state.model = model
        return _run(recipe, state, folder, progress, changed=known != state.stages)
    finally:
        lock.release()


def on_cluster(recipe: Recipe, address: str) -> Recipe:
    """The recipe with all its work on one Ray cluster.

    Args:
        address: ``auto`` or ``host:port``.
    """

    def moved(stage: Stage) -> Stage:
        if isinstance(stage, (SearchStage, ReadjustStage, EvaluateStage)):
            execution = replace(stage.settings.execution, executor="ray", ray_address=address)
            return replace(stage, settings=replace(stage.settings, execution=execution))  # type: ignore[arg-type]
        if isinstance(stage, FinetuneStage):
            return replace(stage, launch=replace(stage.launch, launcher="ray", ray_address=address))
        return stage

    return replace(recipe, stages=tuple(moved(stage) for stage in recipe.stages))


def _foresee(recipe: Recipe, found: Standings, folder: Path, progress: Progress, force: bool) -> None:
    """Say what would stop a later stage.

    Raises:
        SettingsError: if there is such a thing, unless the run is to begin all the same; the others are told.
    """
    foreseen = foresee(recipe, found, folder)
    for line in (*foreseen.notes, *(foreseen.problems if force else ())):
        progress.note(f"note: {line}")
    if foreseen.problems and not force:
        for line in foreseen.problems[:-1]:
            progress.note(f"error: {line}")
        raise SettingsError(f"{foreseen.problems[-1]} (nothing was started; --force begins all the same)")


def _take_over(found: Standings, old: RunState, recipe: Recipe, folder: Path, progress: Progress) -> RunState:
    """Bring the folder to where the recipe stands, and say what is done again."""
    state = RunState(recipe.name, finished=old.finished)
    moved = {}
    for name, before in found.replaced.items():
        moved[folder / name] = _put_aside(folder, name, before, progress)
        del old.stages[name]
    if found.replaced:  # written before anything comes back, which must not be taken for what the old inputs gave
        old.save(folder)
    for each in found.stages:
        now, own = each.state, each.folder
        if each.before is not None and each.lies != own:
            _bring_back(moved.get(each.lies) or each.lies, each.before, folder, each.stage.name, progress)
        if each.why is not None:
            progress.note(each.why)
        now.told = each.stage.describe()
        if now.state == RUNNING:  # its process was killed
            sign = last_sign(own)
            if now.started is not None and sign is not None:
                now.seconds += max(sign - now.started, 0.0)
            now.started = None
        state.stages[each.stage.name] = now
    return state


def start(recipe: Recipe) -> Point:
    """Where a run begins."""
    source = model_source(recipe.model)
    return Point(source.name, source.revision, source.trust_remote_code, source.name, source.revision)


def _run(recipe: Recipe, state: RunState, folder: Path, progress: Progress, changed: bool) -> ExtendReport:
    text, page = yaml.safe_dump(recipe.content, sort_keys=False), folder / REPORT / PAGE_FILE
    state.save(folder)  # first, for by it a folder is known to hold a run
    write_text_atomically(folder / RECIPE_FILE, text)
    if changed:
        page.unlink(missing_ok=True)
    for name in _judged_by_what_was_searched_on(recipe):
        progress.note(f"{name} measures documents that factors are searched on; give it others by data.evaluation")
    point = start(recipe)
    for number, stage in enumerate(recipe.stages, 1):
        own, now = folder / stage.name, state.stages[stage.name]
        heading = f"[{number}/{len(recipe.stages)}] {stage.name}: {stage.describe()}"
        if now.state == DONE:
            progress.note(f"{heading}: done before, in {now.seconds:.0f} s")
        else:
            changed, state.finished = True, None
            now.begin()
            state.save(folder)
            page.unlink(missing_ok=True)  # of what was there before
            progress.note(heading)
            try:
                now.results = _carry_out(stage, point, own, text, progress)
            except KeyboardInterrupt:
                now.end(RUNNING)  # as it is where the process is killed: interrupted, and not failed
                state.save(folder)
                raise
            except BaseException as error:
                now.error = " ".join(str(error).split()) or type(error).__name__
                now.end(FAILED)
                with suppress(OSError):  # where the disk is full, the error says so
                    state.save(folder)
                raise
            now.end(DONE)
            state.save(folder)
            progress.note(f"{stage.name}: done in {now.seconds:.0f} s")
        point = after(stage, point, own)
    if changed or state.finished is None:
        state.finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        state.save(folder)
    exported = None if point.exported is None else Path(point.exported)
    report = ExtendReport(folder, state, exported, page if page.exists() else _write_report(folder, progress))
    _tell_results(recipe, state, folder, progress)
    return report


def _tell_results(recipe: Recipe, state: RunState, folder: Path, progress: Progress) -> None:
    """Write into the card of every exported folder what was measured on the way to it, and of it."""
    for number, stage in enumerate(recipe.stages):
        if isinstance(stage, ExportStage):
            try:
                put_results(folder / stage.name, results_section(state, _stages_of(recipe, number)))
            except OSError as error:
                progress.note(f"note: no results in the card of {stage.name}: {error}")


def _stages_of(recipe: Recipe, export: int) -> list[str]:
    """Names of the stages whose results an exported folder may claim: those before it, and evaluations of itself."""
    names = [stage.name for stage in recipe.stages[: export + 1]]
    for stage in recipe.stages[export + 1 :]:
        if isinstance(stage, ExportStage):
            break
        if isinstance(stage, EvaluateStage) and stage.model == EXPORTED:
            names.append(stage.name)
    return names


def _carry_out(stage: Stage, point: Point, own: Path, recipe: str, progress: Progress) -> dict[str, Any]:
    """Do a stage, or go on with it; what was begun where that cannot be gone on with here is put aside."""
    try:
        return perform(stage, point, own, recipe, progress)
    except OtherRunError as error:
        # By a name that no inputs have: it does not come back by itself.
        place = _free(own.parent / REPLACED / f"{stage.name}-unfinished")
        place.parent.mkdir(exist_ok=True)
        own.rename(place)
        progress.note(
            f"{stage.name} is begun anew, for what was begun cannot be gone on with ({error.why}); it lies in "
            f"{place.relative_to(own.parent)}"
        )
    return perform(stage, point, own, recipe, progress)


def _judged_by_what_was_searched_on(recipe: Recipe) -> list[str]:
    """Evaluations whose documents may be those that candidates were chosen by: their figures flatter the result."""
    searched = {
        (stage.settings.data.source, stage.settings.data.split, stage.settings.data.config)
        for stage in recipe.stages
        if isinstance(stage, (SearchStage, ReadjustStage))
    }
    return [
        stage.name
        for stage in recipe.stages
        if isinstance(stage, EvaluateStage)
        and isinstance(stage.suite, DocumentSettings)
        and (stage.suite.source, stage.suite.split, stage.suite.config) in searched
    ]


def _write_report(folder: Path, progress: Progress) -> Path | None:
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        progress.note(f"no report: {missing[0]} is not installed (pip install longrope[report])")
        return None
    from longrope.report.write import write_report

    return write_report([folder], folder / REPORT).page


def _put_aside(folder: Path, name: str, before: StageState, progress: Progress) -> Path | None:
    """Move what a stage made under other settings out of the way, for the day on which they come back.

    Returns:
        Where it lies then; None where there is nothing.
    """
    own = folder / name
    if not own.exists():
        return None
    place = aside(folder, name, before.key)
    free = _free(place)  # another where it was made twice of the same inputs
    place.parent.mkdir(exist_ok=True)
    RunState(name, {name: before}).save(record(place))
    own.rename(free)
    progress.note(f"{name}: what it made before lies in {free.relative_to(folder)}")
    return free


def _free(place: Path) -> Path:
    """The place, or one beside it where that is taken."""
    number, found = 2, place
    while found.exists():
        number, found = number + 1, place.with_name(f"{place.name}-{number}")
    return found


def _bring_back(lies: Path, before: StageState, folder: Path, name: str, progress: Progress) -> None:
    """Move what was made of the same inputs before to where the stage has it."""
    RunState(name, {name: before}).save(record(aside(folder, name, before.key)))
    lies.rename(folder / name)
    progress.note(f"{name}: what was made of these inputs before comes back from {lies.relative_to(folder)}")
