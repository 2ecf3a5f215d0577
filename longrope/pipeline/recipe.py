"""Recipes: a model, its data, and an ordered list of stages, in a YAML file that is read strictly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longrope.data.mixture import ready_mixtures
from longrope.data.yaml_file import Section, read_yaml
from longrope.evaluation.settings import EvaluationSettings, HarnessSettings, PerplexitySettings
from longrope.evaluation.suites import SUITES, check_lengths
from longrope.exceptions import SettingsError
from longrope.finetune.launch import LaunchSettings
from longrope.finetune.settings import FinetuneSettings
from longrope.pipeline.order import check_order
from longrope.pipeline.overrides import apply_overrides
from longrope.pipeline.reading import about_keys, fields_of, merged, read_as, resolve_place, split
from longrope.pipeline.stages import (
    CURRENT,
    MODELS,
    STAGES,
    DataChoice,
    EvaluateStage,
    ExportSettings,
    ExportStage,
    FinetuneStage,
    ModelChoice,
    ReadjustStage,
    Recipe,
    Scaling,
    SearchStage,
    Stage,
    stage_name,
)
from longrope.search.readjust import ReadjustSettings
from longrope.search.settings import DataSettings, SearchSettings
from longrope.shipped import shipped
from longrope.workers.settings import ExecutionSettings

RECIPE_KEYS = ("model", "seed", "data", "execution", "launch", "stages")
_DECIDED = {"model": "", "output": "", "resume": False, "revision": None}
"""Settings of commands that a recipe fills in when the stage's turn comes."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_PATHS = ("training", "data", "source", "haystack", "factors")
"""Settings that may be paths."""
_RESERVED = ("report", "replaced", "factors", "lock", "texts", "extend.json", "recipe.yaml")
"""What else lies in the folder of a run."""


def ready_recipes() -> dict[str, Path]:
    """The recipes that come with longrope, by name."""
    folders = (path for path in shipped("").iterdir() if path.is_dir() and path.name not in ("data", "deepspeed"))
    return {path.stem: path for folder in sorted(folders) for path in sorted(folder.glob("*.yaml"))}


def read_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check all of it that can be checked without the model.

    Args:
        source: a YAML file, or the name of a recipe that comes with longrope.
        overrides: ``key=value``, see :func:`longrope.pipeline.overrides.apply_overrides`.

    Raises:
        DataError: for the first mistake, on one line with file and line.
        SettingsError: if an override names no place of the recipe, or there is no such recipe.
    """
    path = Path(source)
    if not path.exists():
        ready = ready_recipes()
        if str(source) not in ready:
            raise SettingsError(
                f"recipe {str(source)!r} does not exist; give a YAML file, or one that comes with longrope: "
                f"{', '.join(ready)}"
            )
        path = ready[str(source)]
    content = read_yaml(path)
    apply_overrides(content, overrides)
    content.refuse_unknown(RECIPE_KEYS, "a recipe")
    for key in ("model", "stages"):
        if key not in content:
            raise content.error(None, f"the recipe says no {key}; add {key}:")
    reader = _Reader(content)
    stages = reader.stages()
    recipe = Recipe(
        name=path.stem,
        content={**_plain(content, path.parent), "model": _plain(reader.given_model, path.parent)},
        model=reader.model,
        stages=stages,
        seed=reader.seed,
    )
    check_order(recipe.stages)
    return recipe


class _Reader:
    """Reads the parts of a recipe; what stages share first."""

    def __init__(self, content: Section) -> None:
        self._content = content
        model = self._section("model", "name")
        resolve_place(model, "name")
        self.model = read_as(ModelChoice, model, "model")
        self.given_model = model
        seed = content.get("seed", 0)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 32:
            raise content.error("seed", f"seed is {seed!r}; give a whole number from 0 to {(1 << 32) - 1}")
        self.seed = seed
        data = self._section("data")
        self._documents = _documents(data, "documents", DataSettings)
        self._evaluation = _documents(data, "evaluation", PerplexitySettings) or self._documents
        self._choice = read_as(DataChoice, data, "data")
        self._training = merged(data.path, data.line, data, only=("training",))
        self._execution, self._launch = self._section("execution"), self._section("launch")
        # Checked here, too, so that a mistake is found where it stands.
        read_as(ExecutionSettings, self._execution, "execution", {"trust_remote_code": False})
        read_as(LaunchSettings, self._launch, "launch")

    def stages(self) -> tuple[Stage, ...]:
        """All stages, with names that differ."""
        listed = self._content["stages"]
        if not isinstance(listed, list) or not listed:
            raise self._content.error("stages", "stages is no list of stages; write for example - search: {...}")
        found: dict[str, Stage] = {}
        for item in listed:
            if not isinstance(item, Section) or len(item) != 1:
                place = item if isinstance(item, Section) else self._content
                raise place.error(
                    None if isinstance(item, Section) else "stages",
                    f"a stage is one of {', '.join(STAGES)} with its settings below it, not {_short(item)}",
                )
            kind, options = next(iter(item.items()))
            if kind not in STAGES:
                raise item.error(kind, f"{kind!r} is no stage; known are {', '.join(STAGES)}")
            if options is None:
                options = Section(item.path, item.lines[kind])
            if not isinstance(options, Section):
                raise item.error(kind, f"the settings of {kind} are no mapping; write its keys below it")
            name = stage_name(kind, options)
            if name in _RESERVED:
                raise options.error("name", f"name {name!r} is that of something else in the run's folder; use another")
            if not _NAME.fullmatch(name):
                raise options.error("name", f"name {name!r} cannot be that of a folder; use letters, digits, - and .")
            if name in found:
                raise item.error(
                    kind, f"two stages are called {name}, the other one at {found[name].where}; give one a name:"
                )
            given = merged(options.path, options.line, options, only=[key for key in options if key != "name"])
            read = getattr(self, f"_{kind}")
            found[name] = read(given, {"name": name, "where": item.where(kind)})
        return tuple(found.values())

    def _search(self, given: Section, told: dict[str, str]) -> Stage:
        self._share(given, "execution", self._execution)
        self._share(given, "data", self._documents)
        settings = read_as(SearchSettings, self._seeded(given), "a search", _DECIDED)
        return SearchStage(settings=settings, **told)

    def _readjust(self, given: Section, told: dict[str, str]) -> Stage:
        self._share(given, "execution", self._execution)
        self._share(given, "data", self._documents)
        algorithm = _mapping(given, "algorithm")
        algorithm.setdefault("attention_factor", "present")
        given["algorithm"] = algorithm
        settings = read_as(ReadjustSettings, self._seeded(given), "a readjustment", {**_DECIDED, "factors": None})
        return ReadjustStage(settings=settings, **told)

    def _finetune(self, given: Section, told: dict[str, str]) -> Stage:
        own, given = split(given, ("factors", "keep_windows", "launch"))
        if "data" not in given and self._choice.training is not None:
            given["data"], given.places["data"] = self._choice.training, self._training.where("training")
        if not (isinstance(given.get("data"), str) and given["data"] in ready_mixtures()):
            resolve_place(given, "data")
        held_out = _mapping(given, "held_out")
        resolve_place(held_out, "source")
        if "held_out" in given:
            given["held_out"] = held_out
        decided = {**_DECIDED, "factors": "", "trust_remote_code": self.model.trust_remote_code}
        settings = read_as(
            FinetuneSettings,
            self._seeded(given),
            "a fine-tuning",
            decided,
            lacking="give it here, or the data to all by data.training",
        )
        launch = merged(given.path, given.line, self._launch, _mapping(own, "launch"))
        keep = own.get("keep_windows", True)
        if not isinstance(keep, bool):
            raise own.error("keep_windows", f"keep_windows is {keep!r}; give true or false")
        factors = own.get("factors")
        if isinstance(factors, Section):
            factors = read_as(Scaling, factors, "factors")
        elif isinstance(factors, str):
            resolve_place(own, "factors")
            factors = own["factors"]
            if not Path(factors).exists():
                raise own.error("factors", f"factors {factors!r} do not exist; give a file, or {{method: pi}}")
        elif factors is not None:
            raise own.error("factors", f"factors is {factors!r}; give a file, or for example {{method: pi}}")
        return FinetuneStage(
            settings=settings,
            factors=factors,
            keep_windows=keep,
            launch=read_as(LaunchSettings, launch, "launch"),
            **told,
        )

    def _evaluate(self, given: Section, told: dict[str, str]) -> Stage:
        own, given = split(given, ("suite", "model"))
        name, model = own.get("suite"), own.get("model", CURRENT)
        if name is None:
            raise given.error(None, f"an evaluation needs a suite; use {', '.join(SUITES)}")
        if not isinstance(name, str) or name not in SUITES:
            raise own.error("suite", f"suite {name!r} is not known; use {', '.join(SUITES)}")
        if model not in MODELS:
            raise own.error("model", f"model {model!r} is not known; use {', '.join(MODELS)}")
        kind = SUITES[name]
        known = fields_of(kind)
        # What the harness calls lengths are those of texts that its tasks make.
        shared = [each for each in ("lengths", "methods", "execution", "seed") if each not in known]
        ours, suites = split(given, shared)
        self._share(ours, "execution", self._execution)
        place = "haystack" if "haystack" in known else "source"
        if name in ("perplexity", "needle", "needle-perplexity"):
            defaults = merged(given.path, given.line, self._evaluation, only=(*known, "source"))
            if "source" in defaults and place != "source":
                defaults[place], defaults.places[place] = defaults.pop("source"), defaults.where("source")
            suites = merged(given.path, given.line, defaults, suites)
        resolve_place(suites, place)
        decided: dict[str, Any] = {**_DECIDED, "factors": None}
        if kind is HarnessSettings:
            decided["lengths"] = ()
        settings = read_as(EvaluationSettings, self._seeded(ours), "an evaluation", decided)
        suite = read_as(
            kind, suites, f"suite {name}", lacking="give it here, or those of all by data.evaluation.source"
        )
        try:
            check_lengths(suite, settings.lengths)
        except SettingsError as error:
            raise about_keys(merged(given.path, given.line, ours, suites), error) from None
        return EvaluateStage(settings=settings, suite_name=name, suite=suite, model=model, **told)

    def _export(self, given: Section, told: dict[str, str]) -> Stage:
        return ExportStage(settings=read_as(ExportSettings, given, "an export"), **told)

    def _seeded(self, given: Section) -> Section:
        """The settings with the recipe's seed, unless the stage has one of its own."""
        if "seed" not in given:
            given["seed"], given.places["seed"] = self.seed, given.where()
        return given

    def _share(self, given: Section, key: str, shared: Section) -> None:
        """Put what all stages share under what a stage says itself."""
        own = _mapping(given, key)
        if not own and not shared:
            return
        both = merged(own.path, own.line, shared, own)
        resolve_place(both, "source")
        given[key], given.places[key] = both, given.where(key) if key in given else given.where()

    def _section(self, key: str, short: str | None = None) -> Section:
        """The mapping under ``key``; a text instead stands for its setting ``short``."""
        value = self._content.get(key)
        if short is not None and isinstance(value, str):
            section = Section(self._content.path, self._content.line)
            section[short], section.places[short] = value, self._content.where(key)
            return section
        return _mapping(self._content, key)


def _mapping(given: Section, key: str) -> Section:
    """The mapping under ``key``, an empty one where there is none.

    Raises:
        DataError: if something else stands there.
    """
    value = given.get(key)
    if value is None:
        return Section(given.path, given.line)
    if not isinstance(value, Section):
        raise given.error(key, f"{key} is {_short(value)}, not a mapping; write its keys below it")
    return value


def _documents(data: Section, key: str, kind: type[Any]) -> Section:
    """Documents for several stages, checked as one of them would read them; stages may name the source."""
    documents = _mapping(data, key)
    resolve_place(documents, "source")
    whole = merged(documents.path, documents.line, documents)
    whole.setdefault("source", "of a stage")
    read_as(kind, whole, key)
    return documents


def _short(value: Any) -> str:
    text = str(dict(value) if isinstance(value, dict) else value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _plain(value: Any, folder: Path) -> Any:
    """Sections as plain mappings, with absolute paths: they mean the same wherever the recipe is kept."""
    if isinstance(value, list):
        return [_plain(each, folder) for each in value]
    if not isinstance(value, dict):
        return value
    plain = {key: _plain(each, folder) for key, each in value.items()}
    for key in _PATHS:
        place = plain.get(key)
        if isinstance(place, str) and place:
            # What the command line says is not relative to the recipe.
            typed = isinstance(value, Section) and value.where(key).startswith("override")
            folders = (Path(),) if typed else (folder, Path())
            found = (parent / Path(place).expanduser() for parent in folders)
            here = next((each for each in found if each.exists()), None)
            plain[key] = place if here is None else str(here.resolve())
    return plain
