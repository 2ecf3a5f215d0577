"""The suites by name: what is chosen for each, and how it is opened for a model. And one call that runs any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

from longrope.evaluation.run import EvaluationReport
from longrope.evaluation.run import evaluate as run
from longrope.evaluation.settings import (
    EvaluationSettings,
    HarnessSettings,
    NeedlePerplexitySettings,
    NeedleSettings,
    PasskeySettings,
    PerplexitySettings,
)
from longrope.evaluation.suite import Suite
from longrope.evaluation.task_settings import MultiDocumentQASettings, SummarisationSettings
from longrope.exceptions import SettingsError
from longrope.runs.model import LoadedModel, open_model
from longrope.runs.progress import Progress

SuiteSettings = (
    PerplexitySettings
    | PasskeySettings
    | NeedleSettings
    | NeedlePerplexitySettings
    | MultiDocumentQASettings
    | SummarisationSettings
    | HarnessSettings
)


@dataclass(frozen=True)
class _Kind:
    """A suite.

    Attributes:
        settings: what a user chooses for it.
        opener: module and function that open it.
        up_to: whether the data decide how long texts are, and one length is the longest that they may have.
    """

    settings: type[Any]
    opener: str
    up_to: bool = False

    def open(self, *arguments: Any) -> Suite:
        module = import_module(f"longrope.evaluation.{self.opener}")
        suite: Suite = getattr(module, self.opener)(*arguments)
        return suite


_KINDS = {
    "perplexity": _Kind(PerplexitySettings, "open_perplexity"),
    "passkey": _Kind(PasskeySettings, "open_passkey"),
    "needle": _Kind(NeedleSettings, "open_needle"),
    "needle-perplexity": _Kind(NeedlePerplexitySettings, "open_needle_perplexity"),
    "multi-document-qa": _Kind(MultiDocumentQASettings, "open_multi_document_qa", up_to=True),
    "summarisation": _Kind(SummarisationSettings, "open_summarisation", up_to=True),
    "harness": _Kind(HarnessSettings, "open_harness"),
}
SUITES: dict[str, type[Any]] = {name: kind.settings for name, kind in _KINDS.items()}
"""The settings of each suite by its name."""


def check_lengths(suite: SuiteSettings, lengths: Sequence[int]) -> None:
    """Refuse lengths that a suite cannot measure, whatever the model.

    Raises:
        SettingsError: if there are none, or several where the data decide how long texts are, or if documents are
            shorter.
    """
    if isinstance(suite, HarnessSettings):
        return
    if not lengths:
        raise SettingsError("there are no lengths to measure; give lengths, such as 4k,32k,128k")
    if isinstance(suite, PerplexitySettings):
        suite.tokens(lengths)
    kind = next(each for each in _KINDS.values() if each.settings is type(suite))
    if kind.up_to and len(lengths) > 1:
        raise SettingsError(
            f"lengths are {', '.join(map(str, lengths))}, but the data decide how long these texts are; give one "
            "length, the longest that they may have"
        )


def evaluate(
    settings: EvaluationSettings,
    suite: SuiteSettings,
    progress: Progress | None = None,
    command: Sequence[str] | None = None,
) -> EvaluationReport:
    """Measure a model with one suite; see :func:`longrope.evaluation.run.evaluate`.

    Args:
        suite: decides which suite it is.
        command: the command line that asked for this, for the record.

    Raises:
        InvalidInputError: if something that was given cannot be used; nothing was started then.
        RunFailedError: if no item could be measured.
    """
    if isinstance(suite, HarnessSettings):
        from longrope.evaluation.open_harness import check_installed, harness_lengths, open_harness

        check_installed()
        model = open_model(settings.model, settings.execution, settings.revision)
        settings = replace(settings, lengths=harness_lengths(suite, settings.factors, model))
        return run(settings, partial(open_harness, suite, settings), progress, command)
    return run(settings, suite_opener(settings, suite), progress, command)


def suite_opener(settings: EvaluationSettings, suite: SuiteSettings) -> Callable[[LoadedModel, Progress], Suite]:
    """What makes the suite for a model; not of the harness, which first has to know the model.

    Raises:
        SettingsError: if the suite cannot measure the lengths, whatever the model.
    """
    kind = next(each for each in _KINDS.values() if each.settings is type(suite))
    check_lengths(suite, settings.lengths)
    lengths: Any = settings.lengths[0] if kind.up_to else settings.lengths

    def open_suite(model: LoadedModel, progress: Progress) -> Suite:
        return kind.open(suite, lengths, settings.seed, model, progress)

    return open_suite
