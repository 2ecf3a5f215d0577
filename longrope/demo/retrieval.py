"""Short synthetic texts that hide a number and ask for it: what lets passkey retrieval be learnt and measured.

Texts are put together from token ids, so that an example fills its length exactly. The tokenizer splits
numbers into single digits, which makes copying a number a matter of copying one token after another.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KEYS = ("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "hazel", "iris", "jade", "maple", "onyx")
FILLER = (
    "The grass is green. ",
    "The sky is blue. ",
    "The sun is yellow. ",
    "Here we go. ",
    "There and back again. ",
    "The river runs to the sea. ",
    "A new day begins. ",
)


@dataclass(frozen=True)
class RetrievalExample:
    """A prompt that hides a number and asks for it, and the answer, both as token ids."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class _Needle:
    statement: str
    question: str
    answer: str


def _passkey(rng: random.Random) -> _Needle:
    number = rng.randrange(10_000, 100_000)
    statement = f"The pass key is {number}. Remember it. {number} is the pass key.\n"
    return _Needle(statement, "\nWhat is the pass key? The pass key is", f" {number}.")


def _keyed(rng: random.Random, key: str) -> _Needle:
    number = rng.randrange(1_000_000, 10_000_000)
    statement = f"The magic number of {key} is {number}.\n"
    return _Needle(statement, f"\nWhat is the magic number of {key}? The magic number of {key} is", f" {number}.")


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def make_example(
    tokenizer: Any,
    length: int,
    rng: random.Random,
    filler: Sequence[int] | None = None,
    depth: float | None = None,
    keyed: int = 0,
) -> RetrievalExample:
    """One example of exactly ``length`` tokens, prompt and answer together.

    Args:
        tokenizer: a Hugging Face tokenizer with a BOS token.
        length: total tokens, BOS and answer included.
        rng: the source of every choice.
        filler: token ids to fill with (cut to fit); without it, repeated plain sentences.
        depth: where the asked-for number stands, 0.0 at the start and 1.0 right before the question; drawn
            uniformly when not given.
        keyed: 0 hides one pass key; ``k`` > 0 hides ``k`` named numbers and asks for one of them.
    """
    if keyed:
        needles = [_keyed(rng, key) for key in rng.sample(KEYS, keyed)]
    else:
        needles = [_passkey(rng)]
    asked, *others = needles
    question, answer = _encode(tokenizer, asked.question), _encode(tokenizer, asked.answer)
    statements = [_encode(tokenizer, needle.statement) for needle in needles]
    room = length - 1 - sum(map(len, statements)) - len(question) - len(answer)
    if room < 0:
        raise ValueError(f"a retrieval text with {len(needles)} number(s) needs {length - room} tokens, not {length}")
    if filler is None:
        text = ""
        ids: list[int] = []
        while len(ids) < room:
            text += rng.choice(FILLER)
            if len(text) > 2 * room:  # about two characters a token at the very least
                ids = _encode(tokenizer, text)
    else:
        ids = list(filler)
        ids = (ids * (room // max(len(ids), 1) + 1)) if len(ids) < room else ids
    body = ids[:room]
    depths = [rng.random() if depth is None else depth] + [rng.random() for _ in others]
    for at, statement in sorted(zip([round(d * room) for d in depths], statements, strict=True), reverse=True):
        body[at:at] = statement
    return RetrievalExample([tokenizer.bos_token_id, *body, *question], answer)
