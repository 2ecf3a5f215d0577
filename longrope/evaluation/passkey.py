"""The passkey of Mohtashami and Jaggi (arXiv 2305.16300): five digits in sentences that say nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from longrope.data.needles import Needle
from longrope.evaluation.retrieval import RetrievalSuite

TRIALS = 10
"""Texts at each length, as in LongRoPE (arXiv 2402.13753, section 4.2)."""
_INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about the important information there.\n"
)
_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


class PasskeySuite(RetrievalSuite):
    """Passkeys at random depths, spread over the text.

    Args:
        introduction: whether the text begins by announcing the pass key, as in the paper.
    """

    name = "passkey"

    def __init__(self, lengths: Sequence[int], trials: int = TRIALS, seed: int = 0, introduction: bool = True) -> None:
        super().__init__(lengths, None, trials, seed)
        self._introduction = introduction

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "introduction": self._introduction}

    def needle(self, rng: random.Random) -> Needle:
        number = rng.randrange(10_000, 100_000)
        return Needle(
            str(number),
            f"The pass key is {number}. Remember it. {number} is the pass key.\n",
            "\nWhat is the pass key? The pass key is",
        )

    def filler(self, tokenizer: Any, count: int, rng: random.Random) -> list[int]:
        introduction = self._announcement(tokenizer)[:count]
        unit: list[int] = tokenizer(_FILLER, add_special_tokens=False)["input_ids"]
        repeated = unit * ((count - len(introduction)) // len(unit) + 1)
        return [*introduction, *repeated][:count]

    def place(self, tokenizer: Any, body: Sequence[int], depth: float) -> int:
        before = min(len(self._announcement(tokenizer)), len(body))
        return before + round(depth * (len(body) - before))

    def _announcement(self, tokenizer: Any) -> list[int]:
        if not self._introduction:
            return []
        tokens: list[int] = tokenizer(_INTRODUCTION, add_special_tokens=False)["input_ids"]
        return tokens
