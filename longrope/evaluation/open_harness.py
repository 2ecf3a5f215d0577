"""From settings to the suite that runs tasks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path

from longrope.evaluation.generation import check_chat_template
from longrope.evaluation.harness import HarnessSuite
from longrope.evaluation.harness_tasks import find_tasks
from longrope.evaluation.settings import EvaluationSettings, HarnessSettings
from longrope.exceptions import SettingsError
from longrope.lengths import format_length
from longrope.rope.policy import FactorSchedule, load_factors
from longrope.runs.model import LoadedModel
from longrope.runs.progress import Progress


def harness_lengths(settings: HarnessSettings, factors: str | None, model: LoadedModel) -> tuple[int, ...]:
    """The windows that inputs can fall into; the longest is that of an input.

    Raises:
        SettingsError: if texts are to be made that are longer.
        FactorsError: if the factors cannot be used.
    """
    schedule = model.rope.schedule()
    if factors is not None:
        given = load_factors(factors)
        schedule = given if isinstance(given, FactorSchedule) else model.rope.extended_by(given)
    windows = [window.max_length for window in schedule.windows]
    longest = settings.max_length or max(windows)
    if settings.lengths and max(settings.lengths) > longest:
        raise SettingsError(
            f"length {format_length(max(settings.lengths))} is over the {format_length(longest)} of the longest input; "
            "leave it away, or give --max-length"
        )
    return (*(window for window in windows if window < longest), longest)


def open_harness(
    settings: HarnessSettings, evaluation: EvaluationSettings, model: LoadedModel, progress: Progress
) -> HarnessSuite:
    """Find the tasks.

    Args:
        evaluation: its lengths are those of :func:`harness_lengths`.

    Raises:
        SettingsError: if lm-evaluation-harness is not installed, or does not know a task, or cannot make texts of a
            length with what is given.
    """
    check_installed()
    tasks, groups = find_tasks(settings.tasks, settings.include_path, progress.note)
    if settings.lengths and not any(task.makes_texts for task in tasks):
        raise SettingsError("--lengths is for tasks that make their own texts, such as ruler; give --max-length")
    if settings.chat_template:
        check_chat_template(model.tokenizer)
    folder = Path(evaluation.output).resolve()
    return HarnessSuite(tasks, groups, settings, evaluation.lengths, evaluation.seed, folder)


def check_installed() -> None:
    """Raise SettingsError unless lm-evaluation-harness can be imported."""
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface  # noqa: F401  (needs what lm-eval itself does not ask for)
    except ImportError as error:
        raise SettingsError(
            f"the benchmarks need lm-evaluation-harness ({error}); run `pip install longrope[eval]`"
        ) from None
