"""From settings to the suite that measures needle-driven perplexity."""

from __future__ import annotations

from longrope.evaluation.needle_perplexity import NeedlePerplexitySuite
from longrope.evaluation.open_perplexity import draw_documents
from longrope.evaluation.settings import NeedlePerplexitySettings
from longrope.runs.model import LoadedModel
from longrope.runs.progress import Progress


def open_needle_perplexity(
    settings: NeedlePerplexitySettings, lengths: tuple[int, ...], seed: int, model: LoadedModel, progress: Progress
) -> NeedlePerplexitySuite:
    """Draw the documents.

    Raises:
        DataError: if there are too few documents that are long enough.
        SettingsError: if the shortest length has no room for a needle.
    """
    documents = draw_documents(settings, max(lengths), seed, model, progress)
    suite = NeedlePerplexitySuite(documents, lengths, settings.digits, seed)
    suite.sample(model.tokenizer, suite.items[0].key)
    return suite
