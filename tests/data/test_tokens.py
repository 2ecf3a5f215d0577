from __future__ import annotations

import logging
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrope.data import tokens
from longrope.data.tokens import TextEncoder

PIECES = (
    "the ",
    "river",
    " runs",
    "\n        ",
    "return ",
    "self.",
    "----",
    "      ",
    "1234567",
    "é",
    "日本",
    "</s>",
    "aa",
)
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=400).map("".join)


def full(tokenizer, text):
    """What the tokenizer makes of the whole text, without the one token it may put behind it."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    closes = tokenizer("")["input_ids"][-1:] == [tokenizer.eos_token_id]
    return ids[:-1] if closes else ids


@settings(max_examples=40, deadline=None)
@given(text=TEXTS, length=st.integers(2, 300), first=st.integers(1, 400))
def test_first_tokens_are_those_of_the_whole_text(any_tokenizer, text, length, first):
    with patch.object(tokens, "FIRST_CHARACTERS", first):
        found = TextEncoder(any_tokenizer).first(text, length)
    assert found.dtype == np.int32
    assert found.tolist() == full(any_tokenizer, text)[:length]


@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_no_text_has_more_tokens_than_its_bytes_allow(any_tokenizer, text):
    encoder = TextEncoder(any_tokenizer)
    assert len(full(any_tokenizer, text)) <= encoder.most_tokens(len(text.encode()))


class Counting:
    """A tokenizer that notes how much it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.eos_token_id, self.characters = tokenizer, tokenizer.eos_token_id, 0

    def __call__(self, text, **options):
        self.characters += len(text)
        return self.tokenizer(text, **options)


def test_a_long_text_is_not_tokenised_whole(tokenizer):
    text = "the river runs to the sea. " * 50_000
    counting = Counting(tokenizer)
    assert len(TextEncoder(counting).first(text, 64)) == 64
    assert counting.characters < 0.05 * len(text)
    needed = text[: 3 * tokens.FIRST_CHARACTERS]
    length = len(tokenizer(needed, verbose=False)["input_ids"])
    counting.characters = 0
    TextEncoder(counting).first(text, length)
    assert counting.characters < 1.6 * len(needed)


@pytest.mark.parametrize("behind", [-1, 0, 1])
def test_the_closing_token_is_never_part_of_a_text(fresh_tokenizer, behind):
    text = "the river runs to the sea"
    ids = fresh_tokenizer(text, verbose=False)["input_ids"]
    assert ids[0] == fresh_tokenizer.bos_token_id
    assert ids[-1] == fresh_tokenizer.eos_token_id
    length = len(ids) - 1 + behind
    assert TextEncoder(fresh_tokenizer).first(text, length).tolist() == ids[:-1][:length]


def test_long_texts_cause_no_warning(fresh_tokenizer):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        TextEncoder(fresh_tokenizer).first("the river runs to the sea " * 20, 100)
        assert records == []
        fresh_tokenizer("the river runs to the sea " * 20)
        assert "longer than" in records[0].getMessage()  # it would have warned
    finally:
        logger.removeHandler(handler)


@settings(max_examples=20, deadline=None)
@given(text=TEXTS)
def test_whole_texts_have_no_special_tokens_around_them(any_tokenizer, text):
    encoder = TextEncoder(any_tokenizer)
    expected = any_tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert encoder.whole(text).tolist() == expected


def test_whole_texts_are_not_cut(fresh_tokenizer):
    text = "there and back again " * 20
    expected = TextEncoder(fresh_tokenizer).whole(text)
    fresh_tokenizer(text, truncation=True, max_length=4)  # leaves the limit in the tokenizer
    assert TextEncoder(fresh_tokenizer).whole(text).tolist() == expected.tolist()
    assert len(expected) > 20
