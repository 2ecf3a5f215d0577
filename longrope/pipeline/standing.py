"""How the stages of a recipe stand in the folder of a run: what is kept, gone on with or done again, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longrope.exceptions import RunExistsError
from longrope.pipeline.inputs import key_of, model_source
from longrope.pipeline.perform import is_there
from longrope.pipeline.stages import Recipe, Stage
from longrope.pipeline.state import DONE, LOCK_FILE, STATE_FILE, WAITING, RunState, StageState, differences

REPLACED = "replaced"
TEXTS = "texts"
"""What may lie in the folder of a run before it begins: text that was written for it."""


@dataclass(frozen=True)
class Standing:
    """How a stage stands.

    Attributes:
        state: of the stage as it goes on from here; of a new one where nothing is kept.
        folder: of the stage.
        lies: where what it made lies now: in its folder, in ``replaced/``, or in the folder of another name.
        before: the state of what comes back; None where nothing does.
        why: what is to be said of results that are not kept; None where there are none.
    """

    stage: Stage
    state: StageState
    folder: Path
    lies: Path
    before: StageState | None = None
    why: str | None = None

    def told(self) -> str | None:
        """What will become of it, in one line; None of a stage that was never begun."""
        name = self.stage.name
        if self.why is not None:
            return self.why
        if self.lies != self.folder:
            place = self.lies.relative_to(self.folder.parent)
            return f"{name}: what was made of these inputs before comes back from {place}"
        if self.state.state == WAITING:
            return None
        return f"{name} is done and kept" if self.state.state == DONE else f"{name} was begun and is gone on with"

    def written(self) -> int:
        """Bytes that the stage has written already, and will not write again."""
        if self.lies == self.folder and self.state.state == WAITING:
            return 0
        return sum(path.stat().st_size for path in self.lies.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Standings:
    """How a recipe stands in a folder.

    Attributes:
        stages: of the recipe.
        replaced: what has to give way, by name: of stages with other inputs, and of those that the recipe has not.
    """

    stages: tuple[Standing, ...]
    replaced: dict[str, StageState]

    def left(self) -> list[Stage]:
        """Stages that are not done."""
        return [each.stage for each in self.stages if each.state.state != DONE]

    def told(self) -> Iterator[str]:
        """A line for every stage that was begun."""
        for each in self.stages:
            line = each.told()
            if line is not None:
                yield line
        names = {each.stage.name for each in self.stages}
        for name in self.replaced:
            if name not in names:
                yield f"{name} is not in the recipe any more; what it made goes to {REPLACED}/"


def standings(recipe: Recipe, inputs: dict[str, dict[str, Any]], old: RunState, folder: Path) -> Standings:
    """How a recipe stands in the folder of a run; nothing there is changed.

    Args:
        inputs: from :func:`longrope.pipeline.inputs.stage_inputs`.
        old: what the folder remembers.
    """
    keys = {name: key_of(given) for name, given in inputs.items()}
    replaced = {name: before for name, before in old.stages.items() if before.key != keys.get(name)}
    taken: set[Path] = set()
    found = []
    for stage in recipe.stages:
        given, key, own = inputs[stage.name], keys[stage.name], folder / stage.name
        anew = StageState(stage.kind, stage.describe(), given, key)
        gives_way = replaced.get(stage.name)
        now = anew if gives_way is not None else old.stages.get(stage.name, anew)
        lies, before, why = own, None, None
        if now.state == WAITING or not own.exists():
            kept = _kept(folder, stage.name, key, replaced, taken)
            if kept is not None:
                lies, before = kept
                taken.add(lies)
            if gives_way is not None and gives_way.state != WAITING:
                what = "is done again" if before is None else "gives way to what these inputs gave before"
                changes = "; ".join(differences(gives_way.inputs, given)[:3])
                why = f"{stage.name} {what}, for it was started with other inputs: {changes}"
            now = before or now
        if now.state == DONE and not is_there(stage, lies):
            why = f"{stage.name} was done, but what it made is gone; it is done again"
            now = anew
        found.append(Standing(stage, now, own, lies, before, why))
    return Standings(tuple(found), replaced)


def _kept(
    folder: Path, name: str, key: str, replaced: dict[str, StageState], taken: set[Path]
) -> tuple[Path, StageState] | None:
    """What was made of these inputs before, by the stage or by one that had another name, and where it lies."""
    own, place = folder / name, aside(folder, name, key)
    for path in (place, *sorted(place.parent.glob(f"*-{key}"))):
        if path.name[0] != "." and path.exists() and path not in taken:
            found = _recorded(path)
            return None if found is None else (path, found)
    for other, state in replaced.items():  # which is put aside in a moment
        if state.key == key and (folder / other).exists() and folder / other not in taken:
            return folder / other, state
    if name in replaced or not own.exists():
        return None
    found = _recorded(place)  # it had come back when a run was killed
    return None if found is None else (own, found)


def _recorded(place: Path) -> StageState | None:
    """The state of the stage that was put aside there."""
    found = RunState.read(record(place))
    return None if found is None else next(iter(found.stages.values()))


def aside(folder: Path, name: str, key: str) -> Path:
    """Where the folder of a stage lies while the recipe says something else; its state lies beside it."""
    return folder / REPLACED / f"{name}-{key}"


def record(path: Path) -> Path:
    """Where the state of a stage that was put aside lies."""
    return path.with_name(f".{path.name}")


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
    return pinned(recipe, commit(recipe, state))


def commit(recipe: Recipe, state: RunState | None) -> dict[str, str | None] | None:
    """What the state says of a hub model; None of a folder."""
    source = model_source(recipe.model)
    if Path(source.name).is_dir():
        return None
    asked = {"name": source.name, "revision": source.revision}
    known = state.model if state is not None else None
    if known is not None and known.items() >= asked.items():
        return known
    return {**asked, "commit": source.folder(weights=False).name}


def pinned(recipe: Recipe, model: dict[str, str | None] | None) -> Recipe:
    """The recipe with the commit that :func:`commit` found."""
    if model is None:
        return recipe
    content = {**recipe.content, "model": {**recipe.content["model"], "revision": model["commit"]}}
    return replace(recipe, content=content, model=replace(recipe.model, revision=model["commit"]))


def _is_own(path: Path) -> bool:
    """Whether this may lie in the folder before the state does: of a run that was killed early, or made for it."""
    return path.name in (LOCK_FILE, TEXTS) or path.name.startswith(f".{STATE_FILE}.")
