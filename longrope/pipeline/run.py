"""``longrope extend``: the stages of a recipe one after the other, each done once in the life of the run's folder."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import yaml

from longrope.evaluation.settings import DocumentSettings
from longrope.exceptions import RunExistsError
from longrope.files import write_text_atomically
from longrope.pipeline.inputs import key_of, model_source, stage_inputs
from longrope.pipeline.perform import RECIPE_FILE, Point, after, is_there, perform
from longrope.pipeline.stages import EvaluateStage, FinetuneStage, ReadjustStage, Recipe, SearchStage, Stage
from longrope.pipeline.state import (
    DONE,
    FAILED,
    LOCK_FILE,
    RUNNING,
    STATE_FILE,
    WAITING,
    RunState,
    StageState,
    differences,
    last_sign,
)
from longrope.runs.locks import FolderLock
from longrope.runs.progress import Progress

REPLACED = "replaced"
REPORT, PAGE_FILE = "report", "report.html"
TEXTS = "texts"
"""What may lie in the folder of a run before it begins: text that was written for it."""


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


def extend(recipe: Recipe, output: str | Path, progress: Progress | None = None) -> ExtendReport:
    """Carry out a recipe, or what is left of it in the output folder.

    A stage that was done with the same inputs is not run again. One whose inputs changed is, with all that depends on
    it; what it made before is moved to ``replaced/`` and comes back when the old settings do.

    Args:
        recipe: from :func:`longrope.pipeline.recipe.read_recipe`.
        output: the folder of the run; each stage has a folder of its name in it.

    Raises:
        InvalidInputError: if something that was given cannot be used.
        RunFailedError: if a stage failed; the same call goes on with it.
    """
    progress = progress or Progress()
    folder = Path(output).resolve()
    refuse_other(folder)
    model = _commit(recipe, RunState.read(folder))
    recipe = _pinned(recipe, model)
    inputs = stage_inputs(recipe)
    lock = FolderLock(folder / LOCK_FILE)
    lock.acquire()
    try:
        before = RunState.read(folder) or RunState(recipe.name)
        known = dict(before.stages)
        state = _take_over(recipe, before, inputs, folder, progress)
        state.model = model
        return _run(recipe, state, folder, progress, changed=known != state.stages)
    finally:
        lock.release()


def refuse_other(folder: Path) -> None:
    """Raise RunExistsError if the folder holds something else than the run of a recipe, or what was written for it."""
    if folder.exists() and not folder.is_dir():
        raise RunExistsError(f"output {folder} is a file; give a folder")
    state = RunState.read(folder)
    if state is None and folder.exists() and not all(map(_is_own, folder.iterdir())):
        raise RunExistsError(f"output folder {folder} is not empty and holds no run of a recipe; choose another")


def as_begun(recipe: Recipe, state: RunState | None) -> Recipe:
    """The recipe with the commit of a hub model that the run began with: what is pushed there later changes nothing.

    Args:
        state: of the run; None where there is none yet, whose commit is the present one.

    Raises:
        UnsupportedModelError: if there is no such model on the hub.
    """
    return _pinned(recipe, _commit(recipe, state))


def _commit(recipe: Recipe, state: RunState | None) -> dict[str, str | None] | None:
    """What the state says of a hub model; None of a folder."""
    source = model_source(recipe.model)
    if Path(source.name).is_dir():
        return None
    asked = {"name": source.name, "revision": source.revision}
    known = state.model if state is not None else None
    if known is not None and known.items() >= asked.items():
        return known
    return {**asked, "commit": source.folder(weights=False).name}


def _pinned(recipe: Recipe, model: dict[str, str | None] | None) -> Recipe:
    if model is None:
        return recipe
    content = {**recipe.content, "model": {**recipe.content["model"], "revision": model["commit"]}}
    return replace(recipe, content=content, model=replace(recipe.model, revision=model["commit"]))


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


def _take_over(
    recipe: Recipe, old: RunState, inputs: dict[str, dict[str, object]], folder: Path, progress: Progress
) -> RunState:
    """The state of the run under this recipe: what is done of it, what has to be done again, and why."""
    state = RunState(recipe.name, finished=old.finished)
    keys = {name: key_of(given) for name, given in inputs.items()}
    changed = {name: before for name, before in old.stages.items() if before.key != keys.get(name)}
    for name, before in changed.items():
        _put_aside(folder, name, before, progress)
        del old.stages[name]
    if changed:  # written before anything comes back, which must not be taken for what the old inputs gave
        old.save(folder)
    point = start(recipe)
    for stage in recipe.stages:
        given, key = inputs[stage.name], keys[stage.name]
        now = old.stages.get(stage.name) or StageState(stage.kind, stage.describe(), given, key)
        if now.state == WAITING or not (folder / stage.name).exists():
            found = _bring_back(folder, stage.name, key, progress)
            if stage.name in changed and changed[stage.name].state != WAITING:
                why = "; ".join(differences(changed[stage.name].inputs, given)[:3])
                what = "is done again" if found is None else "gives way to what these inputs gave before"
                progress.note(f"{stage.name} {what}, for it was started with other inputs: {why}")
            now = found or now
        now.told = stage.describe()
        if now.state == RUNNING:  # its process was killed
            sign = last_sign(folder / stage.name)
            if now.started is not None and sign is not None:
                now.seconds += max(sign - now.started, 0.0)
            now.started = None
        if now.state == DONE and not is_there(stage, point, folder / stage.name):
            progress.note(f"{stage.name} was done, but what it made is gone; it is done again")
            now = StageState(stage.kind, stage.describe(), given, key)
        state.stages[stage.name] = now
        point = after(stage, point, folder / stage.name)
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
                now.results = perform(stage, point, own, text, progress)
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
    return ExtendReport(folder, state, exported, page if page.exists() else _write_report(folder, progress))


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


def _put_aside(folder: Path, name: str, before: StageState, progress: Progress) -> None:
    """Move what a stage made under other settings out of the way, for the day on which they come back."""
    own = folder / name
    if not own.exists():
        return
    aside = _aside(folder, name, before.key)
    if aside.exists():  # made twice of the same inputs
        number = 2
        while (other := aside.with_name(f"{aside.name}-{number}")).exists():
            number += 1
        aside = other
    aside.parent.mkdir(exist_ok=True)
    RunState(name, {name: before}).save(_record(_aside(folder, name, before.key)))
    own.rename(aside)
    progress.note(f"{name}: what it made before lies in {aside.relative_to(folder)}")


def _bring_back(folder: Path, name: str, key: str, progress: Progress) -> StageState | None:
    """What was made of these inputs before, by the stage or by one that had another name, if it was."""
    own, place = folder / name, _aside(folder, name, key)
    kept = [place, *(path for path in sorted(place.parent.glob(f"*-{key}")) if path.name[0] != ".")]
    aside = next((path for path in kept if path.exists()), None)
    if aside is None and not own.exists():  # else it had come back when a run was killed
        return None
    found = RunState.read(_record(aside or place))
    if found is None:
        return None
    (before,) = found.stages.values()
    if aside is not None:
        RunState(name, {name: before}).save(_record(place))
        aside.rename(own)
        progress.note(f"{name}: what was made of these inputs before comes back from {aside.relative_to(folder)}")
    return before


def _record(aside: Path) -> Path:
    """Where the state of a stage that was put aside lies."""
    return aside.with_name(f".{aside.name}")


def _aside(folder: Path, name: str, key: str) -> Path:
    """Where the folder of a stage lies while the recipe says something else; its state lies beside it."""
    return folder / REPLACED / f"{name}-{key}"


def _is_own(path: Path) -> bool:
    """Whether this may lie in the folder before the state does: of a run that was killed early, or made for it."""
    return path.name in (LOCK_FILE, TEXTS) or path.name.startswith(f".{STATE_FILE}.")
