"""From settings to the suite that has documents summarised."""

from __future__ import annotations

from longrope.data.drawn_records import drawn_records
from longrope.data.templates.template import text_in
from longrope.evaluation.generation import check_chat_template
from longrope.evaluation.rouge import check_rouge, has_words
from longrope.evaluation.summarisation import SummarisationSuite, SummarisedDocument
from longrope.evaluation.task_settings import SummarisationSettings
from longrope.exceptions import DataError, SettingsError
from longrope.lengths import format_length
from longrope.runs.model import LoadedModel
from longrope.runs.progress import Progress


def open_summarisation(
    settings: SummarisationSettings, max_length: int, seed: int, model: LoadedModel, progress: Progress
) -> SummarisationSuite:
    """Draw the documents.

    Raises:
        SettingsError: if ROUGE is not installed, there is no chat template, or the longest text has no room for the
            prompt around a document.
        DataError: if records cannot be used.
    """
    check_rouge(settings.stemmer)
    if settings.chat_template:
        check_chat_template(model.tokenizer)
    documents, left_out = _read(settings, seed)
    if left_out:
        progress.note(f"left out {left_out} records without a document, or without a summary in words of a to z")
    if not documents:
        raise DataError(
            f"data {settings.source!r} holds no document with a summary in words of a to z, which ROUGE compares"
        )
    suite = SummarisationSuite(
        documents, max_length, settings.prompt, settings.max_new_tokens, settings.stemmer, settings.chat_template
    )
    least = len(suite.prompt(model.tokenizer, "")[0]) + settings.max_new_tokens
    if least >= max_length:
        raise SettingsError(
            f"max-length {format_length(max_length)} has no room for a document beside {least} tokens of the prompt "
            "and the summary; give more, or fewer --max-new-tokens"
        )
    progress.note(f"{len(documents)} documents")
    return suite


def _read(settings: SummarisationSettings, seed: int) -> tuple[list[SummarisedDocument], int]:
    """The documents to summarise, and how many records before the last of them have nothing to compare."""
    documents: list[SummarisedDocument] = []
    left_out = 0
    for record in drawn_records(
        settings.source, seed, split=settings.split, revision=settings.revision, config=settings.config
    ):
        document, summary = text_in(record, settings.document), text_in(record, settings.summary)
        if not document or not has_words(summary):
            left_out += 1
            continue
        documents.append(SummarisedDocument(record.name, document, summary))
        if len(documents) == settings.samples:
            break
    return documents, left_out
