"""``key=value`` on the command line: a setting of a recipe, in place of what the file says."""

from __future__ import annotations

from collections.abc import Sequence

from longrope.data.yaml_file import Section, read_yaml_value
from longrope.exceptions import SettingsError
from longrope.pipeline.stages import stage_name


def apply_overrides(content: Section, overrides: Sequence[str]) -> None:
    """Change a recipe in place.

    Args:
        overrides: ``seed=1``, ``data.training=mixture.yaml``, or with the name of a stage first:
            ``search-128k.algorithm.max_evaluations=200``.

    Raises:
        SettingsError: if one has no ``=``, or names no place of the recipe.
    """
    stages = _stages(content)  # by the names that the file gives them, whatever an override changes
    for override in overrides:
        path, equals, text = override.partition("=")
        # The name of a stage may have points.
        named = max((name for name in stages if path == name or path.startswith(f"{name}.")), key=len, default=None)
        keys = path.split(".") if named is None else [named, *path[len(named) + 1 :].split(".")]
        if path == named:
            raise SettingsError(f"override {override!r} names a stage; name a setting of it, such as {path}.seed=1")
        if not equals or not all(keys):
            raise SettingsError(f"override {override!r} is no change of a setting; write for example seed=1")
        _set(content, stages, keys, read_yaml_value(text, f"override {override!r}"), override)


def _set(content: Section, stages: dict[str, Section], keys: list[str], value: object, override: str) -> None:
    here, place = content, f"override {override!r}"
    if keys[0] in stages:
        here, keys = stages[keys[0]], keys[1:]
    elif keys[0] == "stages":
        raise SettingsError(f"{place}: a stage is named by its name; they are {', '.join(stages)}")
    elif keys[0] not in (*content, "model", "seed", "data", "execution", "launch"):
        raise SettingsError(
            f"{place}: the recipe has neither a setting nor a stage {keys[0]!r}; its stages are {', '.join(stages)}"
        )
    for key in keys[:-1]:
        inner = here.get(key)
        if key == "model" and isinstance(inner, str):  # the short way to write it
            inner = Section(here.path, here.line)
            inner["name"], inner.places["name"] = here[key], here.where(key)
        if inner is None:
            inner = Section(here.path, here.line)
        if not isinstance(inner, Section):
            raise SettingsError(f"{place}: {key!r} holds no settings in this recipe")
        here[key], here.places[key] = inner, here.where(key) if key in here else place
        here = inner
    here[keys[-1]], here.places[keys[-1]] = value, place


def _stages(content: Section) -> dict[str, Section]:
    """Options of the stages by their names, as far as they can be told before the recipe is checked."""
    found: dict[str, Section] = {}
    listed = content.get("stages")
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, Section) and len(item) == 1:
            kind, options = next(iter(item.items()))
            if options is None:
                options = item[kind] = Section(item.path, item.line)
            if isinstance(options, Section):
                found[stage_name(kind, options)] = options
    return found
