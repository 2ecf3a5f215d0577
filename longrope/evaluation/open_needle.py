"""From settings to the suite that hides needles in a haystack."""

from __future__ import annotations

from itertools import islice

import numpy as np

from longrope.data.documents import read_documents
from longrope.data.tokens import TextEncoder
from longrope.evaluation.needle import NeedleSuite
from longrope.evaluation.settings import NeedleSettings
from longrope.exceptions import DataError
from longrope.lengths import format_length
from longrope.runs.model import LoadedModel
from longrope.runs.progress import Progress

PARTS = 4
"""Times the longest length that is read of a haystack, so that texts differ."""
MOST_DOCUMENTS = 10_000


def open_needle(
    settings: NeedleSettings, lengths: tuple[int, ...], seed: int, model: LoadedModel, progress: Progress
) -> NeedleSuite:
    """Read the haystack.

    Raises:
        DataError: if it cannot be read, or is shorter than the longest length.
        SettingsError: if the shortest length has no room for a needle.
    """
    longest, found, parts = max(lengths), 0, []
    documents = read_documents(
        settings.haystack,
        field=settings.field,
        split=settings.split,
        revision=settings.revision,
        config=settings.config,
        seed=seed,
    )
    encoder = TextEncoder(model.tokenizer)
    special = len(encoder.prefix)
    for document in islice(documents, MOST_DOCUMENTS):
        wanted = PARTS * longest - found
        parts.append(encoder.first(document.text.rstrip() + "\n\n", wanted + special)[special:])
        found += len(parts[-1])
        if found >= PARTS * longest:
            break
    tokens = np.concatenate(parts)
    if len(tokens) < longest:
        raise DataError(
            f"haystack {settings.haystack!r} has {len(tokens)} tokens, fewer than the length {format_length(longest)}; "
            "give a longer one or shorter lengths"
        )
    depths = settings.depths()
    suite = NeedleSuite(tokens, lengths, depths, settings.trials, settings.digits, seed)
    suite.prompt(model.tokenizer, suite.items[0].key)
    progress.note(
        f"{settings.trials} needles at each of {len(depths)} depths and {len(lengths)} lengths; a haystack of "
        f"{len(tokens)} tokens"
    )
    return suite
