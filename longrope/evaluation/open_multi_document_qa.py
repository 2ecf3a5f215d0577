"""From settings to the suite that asks about documents."""

from __future__ import annotations

from longrope.data.drawn_records import drawn_records
from longrope.evaluation.generation import check_chat_template
from longrope.evaluation.multi_document_qa import MultiDocumentQASuite
from longrope.evaluation.questions import Question, document_pool, read_question
from longrope.evaluation.task_settings import MultiDocumentQASettings
from longrope.exceptions import DataError, SettingsError
from longrope.lengths import format_length
from longrope.runs.model import LoadedModel
from longrope.runs.progress import Progress

POOL = 10_000
"""Documents to have at hand for questions with too few of their own; with these no further record is read."""


def open_multi_document_qa(
    settings: MultiDocumentQASettings, max_length: int, seed: int, model: LoadedModel, progress: Progress
) -> MultiDocumentQASuite:
    """Draw the questions and their documents.

    Raises:
        SettingsError: if there is no chat template, or the longest text has no room for a question with one document.
        DataError: if records cannot be used, or hold too few documents.
    """
    if settings.chat_template:
        check_chat_template(model.tokenizer)
    questions, left_out = _read(settings, seed)
    if left_out:
        progress.note(f"left out {left_out} records without a question, or without a word in any answer")
    drawn = questions[: settings.samples]
    if not drawn:
        raise DataError(f"data {settings.source!r} holds no question with an answer")
    pool, most = document_pool(questions), max(settings.documents)
    suite = MultiDocumentQASuite(
        [question.with_distractors(pool, most - 1, seed) for question in drawn],
        max_length,
        settings.documents,
        settings.positions,
        settings.max_new_tokens,
        settings.chat_template,
    )
    tokens, name = suite.least_tokens(model.tokenizer)
    if tokens + settings.max_new_tokens > max_length:
        raise SettingsError(
            f"max-length {format_length(max_length)} has no room for {name}, which has {tokens} tokens with one "
            f"document, and {settings.max_new_tokens} tokens of an answer; give at least "
            f"{tokens + settings.max_new_tokens}"
        )
    progress.note(f"{len(drawn)} questions, each with {', '.join(map(str, settings.documents))} documents")
    return suite


def _read(settings: MultiDocumentQASettings, seed: int) -> tuple[list[Question], int]:
    """The questions to ask, others whose documents serve, and how many records ask nothing."""
    records = drawn_records(
        settings.source, seed, split=settings.split, revision=settings.revision, config=settings.config
    )
    questions: list[Question] = []
    left_out = documents = 0
    for record in records:
        question = read_question(record, settings)
        if question is None:
            left_out += 1
            continue
        questions.append(question)
        documents += 1 + len(question.distractors)
        if len(questions) >= settings.samples and documents >= POOL:
            break
    return questions, left_out
