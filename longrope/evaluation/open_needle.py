"""From settings to the suite that hides needles in a haystack."""

from __future__ import annotations

from itertools import islice

import numpy as np

from longrope.data.documents import read_documents
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
    longest, tokens = max(lengths), np.zeros(0, dtype=np.int32)
    documents = read_documents(settings.haystack, field=settings.field, split=settings.split, seed=seed)
    for document in islice(documents, MOST_DOCUMENTS):
        ids = model.tokenizer(document.text.rstrip() + "\n\n", add_special_tokens=False, verbose=False)["input_ids"]
        tokens = np.concatenate([tokens, np.array(ids, dtype=np.int32)])
        if len(tokens) >= PARTS * longest:
            tokens = tokens[: PARTS * longest]
            break
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
