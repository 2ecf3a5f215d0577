"""Needle in a haystack (Kamradt, 2023): a number hidden at chosen depths of real text, and asked for at its end."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longrope.data.needles import DIGITS, Needle, draw_needle
from longrope.evaluation.retrieval import RetrievalSuite

SENTENCE_TOKENS = 200
"""How far back the end of a sentence is looked for."""
_ENDS = (".", "!", "?", "\n")


class NeedleSuite(RetrievalSuite):
    """Needles at every depth of every length, between sentences of the haystack.

    Args:
        haystack: token ids (N,) of real text, at least as many as the longest length; every text is a part of its own.
        digits: of the number.
    """

    name = "needle"

    def __init__(
        self,
        haystack: npt.NDArray[np.int32],
        lengths: Sequence[int],
        depths: Sequence[float],
        trials: int = 1,
        digits: int = DIGITS,
        seed: int = 0,
    ) -> None:
        assert len(haystack) >= max(lengths)
        super().__init__(lengths, depths, trials, seed)
        self._haystack, self._digits = haystack, digits

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256(self._haystack.astype("<i4").tobytes()).hexdigest()[:16]
        return {**super().describe(), "digits": self._digits, "haystack": digest}

    def needle(self, rng: random.Random) -> Needle:
        return draw_needle(rng, self._digits)

    def filler(self, tokenizer: Any, count: int, rng: random.Random) -> list[int]:
        start = rng.randrange(len(self._haystack) - count + 1)
        return [int(token) for token in self._haystack[start : start + count]]

    def place(self, tokenizer: Any, body: Sequence[int], depth: float) -> int:
        at = super().place(tokenizer, body, depth)
        if at == len(body):
            return at
        for end in range(at, max(at - SENTENCE_TOKENS, 0), -1):
            if tokenizer.decode([body[end - 1]]).endswith(_ENDS):
                return end
        return at if at > SENTENCE_TOKENS else 0  # the start of the text is as good as the end of a sentence
