"""Longer context windows for RoPE language models, the LongRoPE way (arXiv 2402.13753).

The verbs of the command line are functions here, each of one settings object: ``longrope.search(SearchSettings(...))``.
The public names load on first use, so that ``import longrope`` stays instant and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longrope.evaluation.settings import (
        EvaluationSettings,
        HarnessSettings,
        NeedlePerplexitySettings,
        NeedleSettings,
        PasskeySettings,
        PerplexitySettings,
    )
    from longrope.evaluation.suites import evaluate
    from longrope.evaluation.task_settings import MultiDocumentQASettings, SummarisationSettings
    from longrope.export.huggingface import export_folder
    from longrope.finetune.launch import LaunchSettings
    from longrope.finetune.merge import merge
    from longrope.finetune.run import finetune
    from longrope.finetune.settings import AdapterSettings, FinetuneSettings, HeldOutSettings, MemorySettings
    from longrope.model.attach import attach, attached
    from longrope.model.extended import load
    from longrope.pipeline.plan import plan
    from longrope.pipeline.recipe import read_recipe
    from longrope.pipeline.run import extend
    from longrope.pipeline.score_text import ScoreSettings, score
    from longrope.pipeline.stages import Recipe
    from longrope.report.write import write_report
    from longrope.rope.factors import RopeFactors
    from longrope.rope.policy import FactorSchedule, FixedFactors, RopePolicy, Window, load_factors
    from longrope.runs.progress import Progress
    from longrope.search.readjust import ReadjustSettings, readjust
    from longrope.search.search import search
    from longrope.search.settings import AlgorithmSettings, DataSettings, SearchSettings
    from longrope.workers.settings import ExecutionSettings

__version__ = "0.1.0.dev0"

__all__ = [
    "AdapterSettings",
    "AlgorithmSettings",
    "DataSettings",
    "EvaluationSettings",
    "ExecutionSettings",
    "FactorSchedule",
    "FinetuneSettings",
    "FixedFactors",
    "HarnessSettings",
    "HeldOutSettings",
    "LaunchSettings",
    "MemorySettings",
    "MultiDocumentQASettings",
    "NeedlePerplexitySettings",
    "NeedleSettings",
    "PasskeySettings",
    "PerplexitySettings",
    "Progress",
    "ReadjustSettings",
    "Recipe",
    "RopeFactors",
    "RopePolicy",
    "ScoreSettings",
    "SearchSettings",
    "SummarisationSettings",
    "Window",
    "__version__",
    "attach",
    "attached",
    "evaluate",
    "export_folder",
    "extend",
    "finetune",
    "load",
    "load_factors",
    "merge",
    "plan",
    "read_recipe",
    "readjust",
    "score",
    "search",
    "write_report",
]

# Public name -> the module that defines it. A new name goes here, in __all__ and among the imports above.
_MODULES = {
    "AdapterSettings": "longrope.finetune.settings",
    "AlgorithmSettings": "longrope.search.settings",
    "DataSettings": "longrope.search.settings",
    "EvaluationSettings": "longrope.evaluation.settings",
    "ExecutionSettings": "longrope.workers.settings",
    "FactorSchedule": "longrope.rope.policy",
    "FinetuneSettings": "longrope.finetune.settings",
    "FixedFactors": "longrope.rope.policy",
    "HarnessSettings": "longrope.evaluation.settings",
    "HeldOutSettings": "longrope.finetune.settings",
    "LaunchSettings": "longrope.finetune.launch",
    "MemorySettings": "longrope.finetune.settings",
    "MultiDocumentQASettings": "longrope.evaluation.task_settings",
    "NeedlePerplexitySettings": "longrope.evaluation.settings",
    "NeedleSettings": "longrope.evaluation.settings",
    "PasskeySettings": "longrope.evaluation.settings",
    "PerplexitySettings": "longrope.evaluation.settings",
    "Progress": "longrope.runs.progress",
    "ReadjustSettings": "longrope.search.readjust",
    "Recipe": "longrope.pipeline.stages",
    "RopeFactors": "longrope.rope.factors",
    "RopePolicy": "longrope.rope.policy",
    "ScoreSettings": "longrope.pipeline.score_text",
    "SearchSettings": "longrope.search.settings",
    "SummarisationSettings": "longrope.evaluation.task_settings",
    "Window": "longrope.rope.policy",
    "attach": "longrope.model.attach",
    "attached": "longrope.model.attach",
    "evaluate": "longrope.evaluation.suites",
    "export_folder": "longrope.export.huggingface",
    "extend": "longrope.pipeline.run",
    "finetune": "longrope.finetune.run",
    "load": "longrope.model.extended",
    "load_factors": "longrope.rope.policy",
    "merge": "longrope.finetune.merge",
    "plan": "longrope.pipeline.plan",
    "read_recipe": "longrope.pipeline.recipe",
    "readjust": "longrope.search.readjust",
    "score": "longrope.pipeline.score_text",
    "search": "longrope.search.search",
    "write_report": "longrope.report.write",
}
# Verbs that packages share their names with, and that calling the package runs.
_PACKAGES = ("finetune", "search")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")  # which becomes an attribute by being imported
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
