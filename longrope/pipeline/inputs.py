"""What decides the result of each stage: its settings, the model and data it is given, the stages it builds on.

From these a stage's key is made. Two runs of one key by one version of longrope give the same result, so a finished
stage is not run again while its key stays, and a changed setting changes the keys of what depends on it and no others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longrope.data.documents import files_of
from longrope.data.mixture import read_mixture
from longrope.demo import model_name
from longrope.model.load import ModelSource
from longrope.model.weights import fingerprint
from longrope.pipeline.stages import (
    CURRENT,
    EXPORTED,
    ORIGINAL,
    EvaluateStage,
    ExportStage,
    FinetuneStage,
    ModelChoice,
    ReadjustStage,
    Recipe,
    Scaling,
    SearchStage,
    Stage,
)

_CHUNK = 1 << 20
_PLACES = ("model", "output", "factors", "revision", "resume", "trust_remote_code")
_FREE_TRAINING = ("save_steps", "save_limit", "log_steps", "report_to", "held_out", "memory", "kernel")
"""What changes nothing of trained weights but rounding."""
_NUMERIC = ("dtype", "attention", "threads_per_worker", "sp")
"""What of an execution changes scores."""


def stage_inputs(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """All that decides the result of each stage, by its name; keys of earlier stages stand for what they made."""
    found: dict[str, dict[str, Any]] = {}
    model = original = model_identity(recipe)
    factors: str | None = None
    exported: str | None = None
    for stage in recipe.stages:
        inputs: dict[str, Any] = {"kind": stage.kind, "settings": _settings(stage)}
        if isinstance(stage, (SearchStage, ReadjustStage)):
            inputs["data"] = data_identity(stage.settings.data.source)
        if isinstance(stage, SearchStage):
            inputs["model"] = model
        elif isinstance(stage, FinetuneStage):
            inputs |= {"model": model, "data": data_identity(stage.settings.data), "factors": factors}
            if isinstance(stage.factors, Scaling):
                inputs["factors"] = asdict(stage.factors)
            elif stage.factors is not None:
                inputs["factors"] = _digest([Path(stage.factors).read_bytes()])
        elif isinstance(stage, EvaluateStage):
            inputs["model"] = {ORIGINAL: original, CURRENT: model, EXPORTED: exported}[stage.model]
            inputs["factors"] = factors if stage.model == CURRENT else None
            source = getattr(stage.suite, "source", None) or getattr(stage.suite, "haystack", None)
            inputs["data"] = data_identity(source) if source else None
        else:
            inputs |= {"model": model, "factors": factors}
        found[stage.name] = inputs
        key = key_of(inputs)
        if isinstance(stage, FinetuneStage):
            model, factors = key, None
        elif isinstance(stage, (SearchStage, ReadjustStage)):
            factors = key
        elif isinstance(stage, ExportStage):
            exported = key
    return found


def key_of(inputs: dict[str, Any]) -> str:
    """A short digest of what decides a result."""
    return _digest([json.dumps(inputs, sort_keys=True).encode()])


def model_identity(recipe: Recipe) -> str:
    """Of the model that the recipe starts from: of its weights and config in a folder, or its commit on the hub."""
    source = model_source(recipe.model)
    if Path(source.name).is_dir():
        return fingerprint(Path(source.name))
    return f"{source.name}@{source.folder(weights=False).name}"


def model_source(choice: ModelChoice) -> ModelSource:
    """The model that a recipe starts from."""
    return ModelSource(model_name(choice.name), choice.revision, trust_remote_code=choice.trust_remote_code)


def data_identity(source: str) -> str:
    """Of a mixture or of documents: of files their names, sizes, first and last mebibyte; of a hub dataset its name."""
    if Path(source).suffix.lower() in (".yaml", ".yml") or files_of(source) is None:
        mixture = read_mixture(source)
        parts: list[Any] = [mixture.bos, mixture.eos, mixture.ngram]
        for each in mixture.sources:
            place = [each.hub, each.config, each.split, each.revision, *each.files]
            parts.append([each.identity, _files(files_of(each.path) or ()) if each.path is not None else place])
        return _digest([json.dumps(parts, default=str).encode(), _files(mixture.decontaminate).encode()])
    return _files(files_of(source) or ())


def _files(paths: Iterable[Path]) -> str:
    parts: list[bytes] = []
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as stream:
            parts += [f"{path.name}:{size}".encode(), stream.read(_CHUNK)]
            if size > _CHUNK:
                stream.seek(max(size - _CHUNK, _CHUNK))
                parts.append(stream.read(_CHUNK))
    return _digest(parts)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def _settings(stage: Stage) -> dict[str, Any]:
    """The settings of a stage that change its result, as JSON has them."""
    given: Any = stage.settings  # type: ignore[attr-defined]
    leave = {*_PLACES, *(_FREE_TRAINING if isinstance(stage, FinetuneStage) else ())}
    kept = {name: value for name, value in asdict(given).items() if name not in leave}
    if isinstance(stage, FinetuneStage):
        kept["keep_windows"] = stage.keep_windows
        del kept["data"]
    if "execution" in kept:
        kept["execution"] = {name: kept["execution"][name] for name in _NUMERIC}
    if "data" in kept:
        del kept["data"]["source"]
        if kept["data"].get("last", 0) is None:  # runs from before there was such a setting are gone on with
            del kept["data"]["last"]
    if isinstance(stage, EvaluateStage):
        kept["suite"] = {
            stage.suite_name: {k: v for k, v in asdict(stage.suite).items() if k not in ("source", "haystack")}
        }
        kept["of"] = stage.model
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain
