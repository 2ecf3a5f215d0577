"""Whether a short answer that was generated is right: exact match in the two ways that are reported."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """As SQuAD compares answers: lower case, no ASCII punctuation, no English articles, single blanks.

    In this order, which is that of SQuAD's own script (Rajpurkar et al., arXiv 1606.05250).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def first_line(text: str) -> str:
    """The first line of an answer that is not blank: the only one that counts, or naming many answers would pay."""
    return text.strip().partition("\n")[0].strip()


def has_first_line(text: str) -> bool:
    """Whether the line that counts is complete, so that nothing more need be generated."""
    return "\n" in text.lstrip()


def best_subspan_em(line: str, answers: Sequence[str]) -> bool:
    """Whether any of ``answers`` stands in ``line``, both normalised.

    The measure of Liu et al., "Lost in the Middle" (arXiv 2307.03172, section 2.2). It compares characters, as
    theirs does: the answer "art" stands in "party" too.
    """
    said = normalise(line)
    return any(normalise(answer) in said for answer in answers)


def exact_match(line: str, answers: Sequence[str]) -> bool:
    """Whether ``line`` is one of ``answers`` and nothing more, both normalised: the measure of SQuAD."""
    said = normalise(line)
    return any(normalise(answer) == said for answer in answers)


def mentions(text: str, answers: Sequence[str]) -> bool:
    """Whether any of ``answers`` stands in ``text`` in whole words, both normalised."""
    words = f" {normalise(text)} "
    return any(f" {normalise(answer)} " in words for answer in answers)
