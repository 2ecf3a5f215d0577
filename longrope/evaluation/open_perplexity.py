"""From settings to the suite that measures perplexity."""

from __future__ import annotations

from pathlib import Path

from longrope.data.documents import read_documents
from longrope.data.samples import Sample, draw_samples
from longrope.data.tokens import TextEncoder
from longrope.evaluation.perplexity import PerplexitySuite
from longrope.evaluation.settings import DocumentSettings, PerplexitySettings
from longrope.exceptions import SettingsError
from longrope.lengths import format_length
from longrope.model.rope_config import attention_span
from longrope.runs.model import LoadedModel
from longrope.runs.progress import Progress

STREAM_DOCUMENTS = 2000
"""Documents of a hub dataset to read when no number is given."""


def open_perplexity(
    settings: PerplexitySettings, lengths: tuple[int, ...], seed: int, model: LoadedModel, progress: Progress
) -> PerplexitySuite:
    """Draw the documents.

    Raises:
        SettingsError: if the numbers exclude each other.
        DataError: if there are too few documents that are long enough.
    """
    span = attention_span(model.config)
    length = settings.tokens(lengths)
    if span is not None:  # what longer lengths are cut to
        settings.tokens([*lengths, min(span, length)])
    documents = draw_documents(settings, length, seed, model, progress)
    front = len(TextEncoder(model.tokenizer).prefix)
    shortest = min(*lengths, span or max(lengths))
    if settings.protocol == "full" and shortest - max(front, 1) < max(settings.last, 1):
        raise SettingsError(
            f"length {format_length(shortest)} has no room for {front} special tokens and {max(settings.last, 1)} to "
            "predict; give longer lengths"
        )
    return PerplexitySuite(documents, lengths, settings.protocol, settings.stride, settings.last, span, front)


def draw_documents(
    settings: DocumentSettings, length: int, seed: int, model: LoadedModel, progress: Progress
) -> tuple[Sample, ...]:
    """Documents that have ``length`` tokens, cut to that.

    Raises:
        DataError: if there are too few of them.
    """
    documents = read_documents(
        settings.source,
        field=settings.field,
        split=settings.split,
        revision=settings.revision,
        config=settings.config,
        seed=seed,
    )
    most = settings.max_documents
    if most is None and not Path(settings.source).exists():
        most = STREAM_DOCUMENTS
    drawn = draw_samples(
        documents,
        model.tokenizer,
        length,
        settings.samples,
        0,
        seed,
        concatenate=settings.concatenate,
        max_documents=most,
    )
    progress.note(f"{len(drawn.search)} documents of {format_length(length)} tokens")
    return drawn.search
