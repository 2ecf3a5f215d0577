"""Needles: numbers hidden in long texts and asked for at their end.

Needle-driven perplexity (LongRoPE2, arXiv 2502.20082, section 3.2) puts a key and its number at the start of a long
text, asks for it at the end, and counts only the loss of the answer: tokens that cannot be told without the start.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longrope.data.samples import Sample
from longrope.data.tokens import TextEncoder
from longrope.exceptions import SettingsError

DIGITS = 7
"""Of a number, as in LongRoPE2."""
_KEYS = (
    "harbour", "garden", "castle", "river", "forest", "mountain", "library", "market", "bridge", "tower", "village",
    "island", "lantern", "orchard", "meadow", "station", "theatre", "kitchen", "cathedral", "valley", "workshop",
    "desert", "lighthouse", "museum",
)  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """A number and the words around it."""

    number: str
    statement: str
    question: str


@dataclass(frozen=True)
class Hidden:
    """Token ids of a text with a needle in it, up to where the answer begins, and of the answer."""

    prompt: list[int]
    answer: list[int]


def draw_needle(rng: random.Random, digits: int = DIGITS) -> Needle:
    """A key and a number that nobody can guess."""
    key, number = rng.choice(_KEYS), str(rng.randrange(10 ** (digits - 1), 10**digits))
    return Needle(
        number,
        f"\nThe magic number of the {key} is {number}. Remember it: the magic number of the {key} is {number}.\n",
        f"\nWhat is the magic number of the {key}? The magic number of the {key} is",
    )


def hide(
    needle: Needle,
    tokenizer: Any,
    length: int,
    text: Callable[[int], Sequence[int]],
    place: Callable[[Sequence[int]], int],
    answer: str,
) -> Hidden:
    """Hide a needle so that prompt and answer have ``length`` tokens together.

    Args:
        text: gives that many tokens to hide it in.
        place: gives the position in them.
        answer: what is to come after the question.

    Raises:
        SettingsError: if the length has no room for the needle.
    """
    encoder = TextEncoder(tokenizer)
    statement, question, asked, alone = (
        encoder.whole(words).tolist() for words in (needle.statement, needle.question, needle.question + answer, answer)
    )
    # As the model would write it: some tokenizers begin a text of its own with another token.
    expected = asked[len(question) :] if asked[: len(question)] == question else alone
    start = encoder.prefix
    room = length - len(start) - len(statement) - len(question) - len(expected)
    if room < 0:
        raise SettingsError(f"length {length} has no room for the text that is hidden; give at least {length - room}")
    body = [int(token) for token in text(room)]
    at = place(body)
    return Hidden([*start, *body[:at], *statement, *body[at:], *question], expected)


def needle_sample(document: Sample, tokenizer: Any, length: int, seed: int, digits: int = DIGITS) -> Sample:
    """A sample of which only the answer counts: a needle, the beginning of a document, the question, the number.

    Args:
        document: at least ``length`` tokens; its own special tokens in front are left out.
        length: tokens of the sample.
        seed: decides key and number, together with the document.

    Raises:
        SettingsError: if the length has no room for the needle.
    """
    needle = draw_needle(random.Random(f"{seed}/{document.digest}"), digits)
    tokens = document.tokens[len(TextEncoder(tokenizer).prefix) :]
    hidden = hide(needle, tokenizer, length, lambda count: tokens[:count].tolist(), lambda body: 0, f" {needle.number}")
    return Sample(document.name, np.array([*hidden.prompt, *hidden.answer]), len(hidden.prompt))
