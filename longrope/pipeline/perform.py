"""Carrying out one stage in its folder, from where the stages before it have come to."""

from __future__ import annotations

import gc
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longrope.evaluation.methods import HF, LONG, LONGROPE
from longrope.evaluation.suites import evaluate
from longrope.exceptions import UnsupportedModelError
from longrope.export.card import Origin
from longrope.export.huggingface import export_folder
from longrope.export.weights import weight_files
from longrope.files import write_text_atomically
from longrope.finetune.merge import merge
from longrope.finetune.run import finetune
from longrope.finetune.run_record import ADAPTER, MODEL
from longrope.lengths import format_length
from longrope.model.load import ModelSource
from longrope.model.rope_config import SCHEDULE_FILE, read_rope
from longrope.pipeline.extended import with_training_windows
from longrope.pipeline.stages import (
    EXPORTED,
    ORIGINAL,
    EvaluateStage,
    ExportStage,
    FinetuneStage,
    ReadjustStage,
    SearchStage,
    Stage,
)
from longrope.rope.policy import FactorSchedule, Window, load_factors
from longrope.runs.progress import Progress
from longrope.search.readjust import readjust
from longrope.search.run import FACTORS_FILE
from longrope.search.search import search
from longrope.workers.settings import ExecutionSettings

MERGED = "merged"
CONFIG = "config.json"
RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class Point:
    """Where a run has come to.

    Attributes:
        model: a folder or a hub id, with its revision.
        original: the model that the recipe started from.
        factors: file of factors that the model was not trained under yet; None where it has its own.
        exported: the folder of the last export.
    """

    model: str
    revision: str | None
    trust_remote_code: bool
    original: str
    original_revision: str | None
    factors: str | None = None
    exported: str | None = None

    @property
    def source(self) -> ModelSource:
        """The model, to be loaded."""
        return ModelSource(self.model, self.revision, trust_remote_code=self.trust_remote_code)

    def schedule_file(self) -> str | None:
        """The file that holds all windows of the model; None where it is not extended."""
        if self.factors is not None:
            return self.factors
        own = Path(self.model) / SCHEDULE_FILE
        return str(own) if own.exists() else None


def after(stage: Stage, point: Point, folder: Path) -> Point:
    """Where a run is when the stage is done; its results lie in ``folder``."""
    if isinstance(stage, (SearchStage, ReadjustStage)):
        return replace(point, factors=str(folder / FACTORS_FILE))
    if isinstance(stage, FinetuneStage):
        model = folder / (MERGED if stage.settings.adapts else MODEL)
        return replace(point, model=str(model), revision=None, factors=None)
    if isinstance(stage, ExportStage):
        return replace(point, exported=str(folder))
    return point


def is_there(stage: Stage, folder: Path) -> bool:
    """Whether what the stages behind need of this one still lies in its folder."""
    if isinstance(stage, EvaluateStage):
        return (folder / "results.json").exists()
    if isinstance(stage, FinetuneStage):
        return is_whole(folder / (MERGED if stage.settings.adapts else MODEL))
    if isinstance(stage, ExportStage):
        return is_whole(folder, weights=not stage.settings.config_only)
    return (folder / FACTORS_FILE).exists()


def is_whole(folder: Path, config: str = CONFIG, weights: bool = True) -> bool:
    """Whether a model or an adapter lies in a folder, with its config and all its weights."""
    if not (folder / config).exists():
        return False
    try:
        return not weights or bool(weight_files(folder))
    except UnsupportedModelError:
        return False


def perform(stage: Stage, point: Point, folder: Path, recipe: str, progress: Progress) -> dict[str, Any]:
    """Carry out a stage, or go on with it where it was interrupted.

    Args:
        folder: of the stage; empty, or what an earlier start of the same stage left there.
        recipe: its text, which an export keeps.

    Returns:
        What came out, in a few figures, as JSON.

    Raises:
        LongRopeError: what stopped it.
    """
    if isinstance(stage, SearchStage):
        return _search(stage, point, folder, progress)
    if isinstance(stage, FinetuneStage):
        return _finetune(stage, point, folder, progress)
    if isinstance(stage, ReadjustStage):
        return _readjust(stage, point, folder, progress)
    if isinstance(stage, EvaluateStage):
        return _evaluate(stage, point, folder, progress)
    assert isinstance(stage, ExportStage)
    return _export(stage, point, folder, recipe, progress)


def _search(stage: SearchStage, point: Point, folder: Path, progress: Progress) -> dict[str, Any]:
    settings = replace(
        stage.settings,
        model=point.model,
        revision=point.revision,
        execution=_execution(stage, point),
        output=str(folder),
        resume=True,
    )
    report = search(settings, progress)
    length, solution = settings.target_length, report.solution
    found = solution.result()
    results = {
        "length": length,
        "candidates": solution.evaluations,
        "n_hat": report.factors.n_hat,
        "attention_factor": report.factors.attention_factor,
        "scored": settings.data.scored_part,
        "search_perplexity": _number(found.search),
        "held_out_perplexity": _number(found.held_out(length)),
    }
    if report.yarn is not None:
        yarn_result, difference = report.yarn
        results |= {
            "yarn_held_out_perplexity": _number(yarn_result.held_out(length)),
            "nats_better_than_yarn": _number(-difference.mean),
            "standard_error": _number(difference.standard_error),
        }
    return results


def _finetune(stage: FinetuneStage, point: Point, folder: Path, progress: Progress) -> dict[str, Any]:
    factors, adapts = _training_factors(stage, point, folder), stage.settings.adapts
    for result in (folder / (ADAPTER if adapts else MODEL), folder / MERGED):  # which are made again of what is there
        if not is_whole(result, "adapter_config.json" if result.name == ADAPTER else CONFIG):
            shutil.rmtree(result, ignore_errors=True)
    settings = replace(
        stage.settings, model=point.model, revision=point.revision, factors=str(factors), output=str(folder)
    )
    report = finetune(settings, stage.launch, resume=True, tell=progress.note)
    if adapts and not (folder / MERGED).exists():
        progress.note("folding the adapter into the model")
        trained = load_factors(folder / ADAPTER / SCHEDULE_FILE)
        windows = trained.windows if isinstance(trained, FactorSchedule) else (Window(trained.target_length, trained),)
        merge(folder / ADAPTER, folder / MERGED, point.source, code=any(each.factors.n_hat for each in windows))
    _free_devices()
    return {"length": settings.seq_length, "steps": settings.steps, "held_out_perplexity": report.held_out}


def _training_factors(stage: FinetuneStage, point: Point, folder: Path) -> Path:
    """The file that training reads, beside the stage's folder."""
    rope = read_rope(point.source.load_config(), point.source.folder(weights=False))
    if stage.factors is None:
        assert point.factors is not None, "the order of stages was checked"
        found = load_factors(point.factors)
        schedule = found if isinstance(found, FactorSchedule) else rope.extended_by(found)
        rope = replace(rope, policy=schedule, window=schedule.windows[-1].max_length)
    path = folder.parent / "factors" / f"{stage.name}.json"
    path.parent.mkdir(exist_ok=True)
    with_training_windows(stage, rope).schedule().save(path)
    return path


def _readjust(stage: ReadjustStage, point: Point, folder: Path, progress: Progress) -> dict[str, Any]:
    settings = replace(
        stage.settings,
        model=point.model,
        revision=point.revision,
        factors=point.schedule_file(),
        execution=_execution(stage, point),
        output=str(folder),
        resume=True,
    )
    report = readjust(settings, progress)
    windows = {}
    for window in report.windows:
        length = window.factors.target_length
        windows[str(length)] = {
            "held_out_perplexity": _number(window.solution.result().held_out(length)),
            "with_long_factors": _number(window.solution.result("long").held_out(length)),
        }
    return {"windows": windows, "scored": settings.data.scored_part}


def _evaluate(stage: EvaluateStage, point: Point, folder: Path, progress: Progress) -> dict[str, Any]:
    model, revision, factors = point.model, point.revision, point.schedule_file()
    methods = stage.settings.methods
    if stage.model == ORIGINAL:
        model, revision, factors = point.original, point.original_revision, None
    elif stage.model == EXPORTED:
        assert point.exported is not None, "the order of stages was checked"
        model, revision, factors, methods = point.exported, None, None, methods or (HF,)
    settings = replace(
        stage.settings,
        model=model,
        revision=revision,
        factors=factors if not methods or {LONGROPE, LONG} & set(methods) else None,
        methods=methods,
        execution=_execution(stage, point),
        output=str(folder),
        resume=True,
    )
    report = evaluate(settings, stage.suite, progress, ("longrope", "extend", RECIPE_FILE))
    return {"suite": stage.suite_name, "table": [_plain(row) for row in report.table.to_dict("records")]}


def _export(stage: ExportStage, point: Point, folder: Path, recipe: str, progress: Progress) -> dict[str, Any]:
    settings, file = stage.settings, point.schedule_file()
    assert file is not None, "the order of stages was checked"
    if not is_there(stage, folder):
        if folder.exists():  # whole at first, and parts of it were deleted since
            shutil.rmtree(folder)
        factors = load_factors(file)
        windows = factors.windows if isinstance(factors, FactorSchedule) else (Window(factors.target_length, factors),)
        code = settings.code
        if code is None:
            code = not settings.without_n_hat and any(window.factors.n_hat for window in windows)
        exported = export_folder(
            point.source,
            factors,
            folder,
            settings.without_n_hat,
            short_window=settings.short_window,
            single_list=settings.single_list,
            attention_factor=settings.attention_factor,
            config_format=settings.config_format,
            code=code,
            config_only=settings.config_only,
            copy=settings.copy,
            origin=_origin(stage, point),
        )
        for loss in exported.losses:
            progress.note(f"note: {'without trust_remote_code, ' if code else ''}{loss}")
    write_text_atomically(folder / RECIPE_FILE, recipe)
    schedule = load_factors(folder / SCHEDULE_FILE)
    assert isinstance(schedule, FactorSchedule)
    return {"folder": str(folder), "windows": [format_length(each.max_length) for each in schedule.windows]}


def _origin(stage: ExportStage, point: Point) -> Origin:
    """What the card tells of the weights: the model that the recipe began with, and the way from there."""
    whose = "those of the model, unchanged"
    if point.model != point.original:
        whose = f"those of the model, trained further by the recipe in [{RECIPE_FILE}]({RECIPE_FILE})"
    return Origin(
        source=ModelSource(point.original, point.original_revision, trust_remote_code=point.trust_remote_code),
        told=f"This folder holds no weights: lay its files over {whose}."
        if stage.settings.config_only
        else f"The weights are {whose}.",
        command=f"extend {RECIPE_FILE} --output RUN",
        measured=True,
    )


def _execution(stage: SearchStage | ReadjustStage | EvaluateStage, point: Point) -> ExecutionSettings:
    return replace(stage.settings.execution, trust_remote_code=point.trust_remote_code)


def _free_devices() -> None:
    """Give GPU memory of training in this process back, for the evaluators of the next stage."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """A row of a table as JSON."""
    return {str(name): _number(value) if isinstance(value, float) else value for name, value in row.items()}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
