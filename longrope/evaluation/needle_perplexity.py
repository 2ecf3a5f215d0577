"""Needle-driven perplexity (LongRoPE2, arXiv 2502.20082, section 3.2): only the answer to a question counts.

Perplexity of all tokens hardly tells whether a model uses the start of a long text. Here a key and its number stand at
the start, and only the tokens of the number are counted when it is asked for at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from longrope.data.needles import DIGITS, needle_sample
from longrope.data.samples import Sample
from longrope.evaluation.perplexity import perplexity_table
from longrope.evaluation.suite import Item, Suite, by_key
from longrope.lengths import format_length
from longrope.model.score import score_tokens
from longrope.rope.policy import RopePolicy


class NeedlePerplexitySuite(Suite):
    """One needle at the start of each document, at each length.

    Args:
        documents: of at least as many tokens as the longest length.
        digits: of the numbers.
        seed: decides keys and numbers; a document has the same ones at every length.
    """

    name = "needle-perplexity"

    def __init__(
        self, documents: Sequence[Sample], lengths: Sequence[int], digits: int = DIGITS, seed: int = 0
    ) -> None:
        self._documents = {document.digest: document for document in documents}
        self._digits, self._seed = digits, seed
        self.items = [
            Item(f"{document.digest}/{format_length(length)}", length) for length in lengths for document in documents
        ]
        self._lengths = {key: item.length for key, item in by_key(self.items).items()}

    def describe(self) -> dict[str, Any]:
        return {"digits": self._digits, "samples": list(self._documents)}

    def sample(self, tokenizer: Any, item: str) -> Sample:
        """The text of an item, of which only the answer counts.

        Raises:
            SettingsError: if the length has no room for the needle.
        """
        document = self._documents[item.partition("/")[0]]
        return needle_sample(document, tokenizer, self._lengths[item], self._seed, self._digits)

    def measure(self, model: Any, tokenizer: Any, policy: RopePolicy, item: str) -> dict[str, Any]:
        sample = self.sample(tokenizer, item)
        nll = score_tokens(model, sample.tokens, policy.factors_for(len(sample.tokens)), sample.first).sum()
        if not np.isfinite(nll):
            raise FloatingPointError("the loss is not finite; try bfloat16 or float32")
        return {"document": sample.name, "nll": float(nll), "tokens": len(sample.tokens) - sample.first}

    def table(self, records: pd.DataFrame) -> pd.DataFrame:
        return perplexity_table(records)
