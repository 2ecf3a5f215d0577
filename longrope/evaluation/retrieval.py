"""Passkey and needle in a haystack: a number is hidden in a long text and asked for at its end.

A text has exactly as many tokens as its length says, the answer included. The window is that of the whole text, pinned
for prompt and answer, so nothing crosses from one into another. An answer is right when what is generated greedily
begins with the number.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import pandas as pd

from longrope.data.needles import Needle, hide
from longrope.evaluation.generation import generate
from longrope.evaluation.suite import Item, Suite, by_key
from longrope.lengths import format_length
from longrope.rope.policy import RopePolicy


class RetrievalSuite(Suite):
    """Hidden numbers at several lengths and depths.

    Args:
        lengths: in tokens.
        depths: of each trial at a length: 0 at the start of the text, 1 right before the question; None for random
            ones, one in each of as many equal parts of the text as there are trials.
        trials: texts at each length, or at each length and depth.
        seed: decides numbers, random depths and where the filler begins.
    """

    def __init__(self, lengths: Sequence[int], depths: Sequence[float] | None, trials: int, seed: int) -> None:
        self._trials, self._seed = trials, seed
        self.depths = depths
        self.items = [
            Item(f"{format_length(length)}/{'' if depth is None else f'{depth:.4g}/'}{trial}", length)
            for length in lengths
            for depth in (depths if depths is not None else [None])
            for trial in range(trials)
        ]
        self._items = by_key(self.items)

    @abstractmethod
    def needle(self, rng: random.Random) -> Needle:
        """A number that nobody can guess, and how it is hidden and asked for."""

    @abstractmethod
    def filler(self, tokenizer: Any, count: int, rng: random.Random) -> Sequence[int]:
        """``count`` tokens to hide the needle in."""

    def place(self, tokenizer: Any, body: Sequence[int], depth: float) -> int:
        """Position in the filler at which a needle of this depth stands."""
        return round(depth * len(body))

    def describe(self) -> dict[str, Any]:
        return {"trials": self._trials, "depths": None if self.depths is None else list(self.depths)}

    def prompt(self, tokenizer: Any, item: str) -> tuple[list[int], str, float]:
        """Token ids of the whole text before the answer, the number, and the depth it stands at.

        Raises:
            SettingsError: if the length has no room for the needle.
        """
        length = self._items[item].length
        rng = random.Random(f"{self._seed}/{item}")
        needle = self.needle(rng)
        parts = item.split("/")
        depth = float(parts[1]) if self.depths is not None else (int(parts[-1]) + rng.random()) / self._trials
        hidden = hide(
            needle,
            tokenizer,
            length,
            lambda count: self.filler(tokenizer, count, rng),
            lambda body: self.place(tokenizer, body, depth),
            f" {needle.number}.",
        )
        return hidden.prompt, needle.number, depth

    def measure(self, model: Any, tokenizer: Any, policy: RopePolicy, item: str) -> dict[str, Any]:
        length = self._items[item].length
        prompt, number, depth = self.prompt(tokenizer, item)
        answer = generate(model, tokenizer, policy, prompt, length - len(prompt)).strip()
        return {"depth": depth, "expected": number, "answer": answer, "correct": int(answer.startswith(number))}

    def table(self, records: pd.DataFrame) -> pd.DataFrame:
        rows = []
        for (method, length), group in records.groupby(["method", "length"], sort=False):
            low, high = wilson(int(group["correct"].sum()), len(group))
            rows.append(
                {
                    "method": method,
                    "length": length,
                    "accuracy": float(group["correct"].mean()),
                    "low": low,
                    "high": high,
                    "trials": len(group),
                }
            )
        return pd.DataFrame(rows)


def wilson(right: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share (Wilson, 1927), which is of use near 0 and 1 too; 95% by default."""
    share, square = right / trials, z * z / trials
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * (share * (1 - share) / trials + square / (4 * trials)) ** 0.5
    # Rounding must not leave the share itself outside.
    return min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share)
