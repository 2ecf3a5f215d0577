"""How much a stage has to do: passes over texts of a length, counted as the commands themselves would make them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from longrope.data.needles import DIGITS
from longrope.data.samples import SampleSet
from longrope.evaluation.perplexity import sliding_windows
from longrope.evaluation.settings import (
    EvaluationSettings,
    HarnessSettings,
    NeedlePerplexitySettings,
    NeedleSettings,
    PasskeySettings,
    PerplexitySettings,
)
from longrope.evaluation.suites import SuiteSettings
from longrope.evaluation.task_settings import MultiDocumentQASettings, SummarisationSettings
from longrope.finetune.held_out import held_out_lengths
from longrope.finetune.settings import FinetuneSettings
from longrope.model.rope_config import attention_span
from longrope.runs.model import LoadedModel
from longrope.search.comparison import passes
from longrope.search.racing import LEAST
from longrope.search.readjust import ReadjustSettings, readjust_problem
from longrope.search.search import search_problem
from longrope.search.settings import AlgorithmSettings, DataSettings, SearchSettings
from longrope.search.solve import Problem

PASSKEY_DIGITS = 5
AROUND_DIGITS = 2
"""Tokens of an answer beside its digits, each of which is a token of its own: the blank and the full stop."""
RACING_SAVES = 0.5
"""Of what candidates would take once enough are known to drop others."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Equal pieces of work, each done by one worker.

    Attributes:
        length: tokens of a text, those that are written included.
        count: pieces.
        predicted: positions of a pass at which logits are made.
        written: tokens that are generated one by one at the end of the text.
        passes: forward passes of a piece.
    """

    length: int
    count: int
    predicted: int
    written: int = 0
    passes: int = 1


Round = tuple[Work, ...]
"""Work in any order; the next round begins when all of it is done."""


def search_work(model: LoadedModel, settings: SearchSettings) -> list[Round]:
    """Rounds of a search, and the comparison with other methods at its end."""
    problem = search_problem(model, settings, samples=SampleSet(()))
    return _searched(problem, settings.algorithm, settings.data)


def readjust_work(model: LoadedModel, settings: ReadjustSettings) -> dict[int, list[Round]]:
    """Rounds of the search at each window."""
    schedule, found = model.rope.schedule(), {}
    for window in sorted(set(settings.windows)):
        problem = readjust_problem(model.rope, schedule, window, settings.algorithm, samples=SampleSet(()))
        found[window] = _searched(problem, settings.algorithm, settings.data)
    return found


def _searched(problem: Problem, algorithm: AlgorithmSettings, data: DataSettings) -> list[Round]:
    length, samples = problem.length, data.sample_count(problem.length)
    data.check_length(length)
    seeds = {problem.space.quantise(seed) for seed in problem.seeds}
    first, *later = algorithm.sizes(length).rounds(len(seeds))
    known, counts = first, []
    for size in later:
        saved = RACING_SAVES if algorithm.races and known >= LEAST else 0.0
        counts.append(size * samples - round(saved * size * samples))
        known += size
    # One evaluation comes first and alone: it says how long the others will take.
    counts = [1, first * samples - 1, *counts]
    # What is asked for twice is scored once. The best candidate, and mostly the best without n_hat, are among those
    # that the search has scored already; held-out documents know neither.
    on_search = {method.at(length) for method in problem.methods} - seeds
    on_held_out = {(method.at(scored), scored) for method in problem.methods for scored in _scored(problem, method)}
    new = 2 if any(problem.space.n_hat_choices) else 1
    lengths = Counter(scored for _, scored in on_held_out)
    lengths[length] += new
    compared = Counter({each: count * data.held_out for each, count in lengths.items()})
    compared[length] += len(on_search) * samples
    ends = None if data.scores_all else data.last or DIGITS + 1
    searching = [(_scoring(length, count, ends),) for count in counts if count]
    return [*searching, tuple(_scoring(each, count, ends) for each, count in sorted(compared.items()) if count)]


def _scored(problem: Problem, method: Any) -> set[int]:
    return set(passes(method, problem.lengths).values())


def _scoring(length: int, count: int, predicted: int | None = None) -> Work:
    return Work(length=length, count=count, predicted=predicted or length - 1)


def evaluation_work(settings: EvaluationSettings, suite: SuiteSettings, config: Any) -> Round | None:
    """Items of a suite under all of its methods; None for the harness, whose tasks decide.

    Where the data decide how long texts and answers are, they are as long as they may be.
    """
    methods, lengths = max(len(settings.methods), 1), settings.lengths
    match suite:
        case PerplexitySettings():
            return tuple(_perplexity(suite, lengths, methods, attention_span(config)))
        case NeedlePerplexitySettings():
            return tuple(
                Work(length=length, count=suite.samples * methods, predicted=suite.digits + 1) for length in lengths
            )
        case PasskeySettings():
            return _answers(lengths, suite.trials * methods, PASSKEY_DIGITS + AROUND_DIGITS)
        case NeedleSettings():
            return _answers(lengths, suite.trials * len(suite.depths()) * methods, suite.digits + AROUND_DIGITS)
        case MultiDocumentQASettings():
            each = len(suite.documents) * len(suite.positions)
            return _answers(lengths[-1:], suite.samples * each * methods, suite.max_new_tokens)
        case SummarisationSettings():
            return _answers(lengths[-1:], suite.samples * methods, suite.max_new_tokens)
        case HarnessSettings():
            return None


def _answers(lengths: Sequence[int], count: int, written: int) -> Round:
    return tuple(Work(length=length, count=count, predicted=1, written=written) for length in lengths)


def _perplexity(suite: PerplexitySettings, lengths: Sequence[int], methods: int, span: int | None) -> Iterable[Work]:
    last = suite.last or min(*lengths, span or lengths[0]) - 1
    document = suite.document_length or max(lengths)
    for length in lengths:
        seen, count = min(length, span or length), suite.samples * methods
        if suite.protocol == "full":
            yield Work(length=seen, count=count, predicted=last)
        else:
            windows = len(sliding_windows(document, seen, suite.stride))
            yield Work(length=seen, count=count, predicted=max((document - 1) // windows, 1), passes=windows)


def held_out_work(settings: FinetuneSettings, original_length: int) -> Round:
    """What a fine-tuning run measures at its beginning, and once more at its end."""
    held_out = settings.held_out
    if held_out.source is None:
        return ()
    return tuple(_scoring(length, held_out.samples) for length in held_out_lengths(settings, original_length))
