"""Perplexity of documents: equal to plain transformers, on the text that is meant, per token and per byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from longrope.data.samples import Sample
from longrope.evaluation.perplexity import PerplexitySuite, byte_count, sliding_windows
from longrope.model.published import published_policies
from longrope.model.rope_config import read_rope

Models = Callable[..., PreTrainedModel]
LENGTH, TOKENS = 128, 300


def sample(seed: int = 0, tokens: int = TOKENS) -> Sample:
    return Sample(f"document {seed}", np.random.default_rng(seed).integers(4, 100, tokens))


def measured(suite: PerplexitySuite, model: Any, tokenizer: Any, method: str = "none") -> pd.DataFrame:
    """A row an item."""
    policy = published_policies(read_rope(model.config), LENGTH)[method]
    rows = [
        {"method": method, "item": item.key, "length": item.length, **suite.measure(model, tokenizer, policy, item.key)}
        for item in suite.items
    ]
    return pd.DataFrame(rows)


@torch.inference_mode()
def by_transformers(model: Any, tokens: Any, length: int, stride: int) -> tuple[float, int]:
    """Nats and tokens of a sliding window, as transformers' own documentation computes them, by loss and labels."""
    nats, count, before = 0.0, 0, 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + length, len(tokens))
        ids = torch.tensor(tokens[begin:end], dtype=torch.long)[None]
        labels = ids.clone()
        labels[:, : before - begin] = -100
        predicted = int((labels[:, 1:] != -100).sum())
        nats += float(model(ids, labels=labels).loss) * predicted
        count, before = count + predicted, end
        if end == len(tokens):
            break
    return nats, count


@pytest.mark.parametrize("stride", [16, 50, 127])
@pytest.mark.parametrize(("method", "rope"), [("none", {}), ("pi", {"rope_type": "linear", "factor": 2.0})])
def test_sliding_windows_equal_plain_transformers(
    method: str, rope: dict[str, object], stride: int, make_tiny_model: Models, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    suite = PerplexitySuite([sample()], [LENGTH], "sliding", stride)
    row = measured(suite, make_tiny_model(), tiny_tokenizer, method).iloc[0]
    nats, tokens = by_transformers(make_tiny_model(rope=rope), sample().tokens, LENGTH, stride)
    assert row["tokens"] == tokens == TOKENS - 1
    assert row["nll"] == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("front", [1, 2])
def test_every_context_begins_as_a_text_does(
    front: int, make_tiny_model: Models, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, tokens = make_tiny_model(), sample().tokens
    found = measured(PerplexitySuite([sample()], [32, 300], front=front), model, tiny_tokenizer)
    assert set(found["tokens"]) == {32 - front}
    short = torch.tensor([*tokens[:front], *tokens[front - 32 :]], dtype=torch.long)[None]
    for row, ids in zip(found.itertuples(), [short, torch.tensor(tokens, dtype=torch.long)[None]], strict=True):
        labels = ids.clone()
        labels[:, : front - 32] = -100
        with torch.inference_mode():
            loss = model(ids, labels=labels).loss
        assert row.nll == pytest.approx(float(loss) * (32 - front), rel=1e-5)


def test_every_length_predicts_the_same_last_tokens(
    make_tiny_model: Models, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, tokens = make_tiny_model(), sample().tokens
    found = measured(PerplexitySuite([sample()], [32, 128, 300], last=20), model, tiny_tokenizer)
    for row, length in zip(found.itertuples(), [32, 128, 300], strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor(tokens[-length:], dtype=torch.long)[None]).logits[0, -21:-1].double()
        expected = torch.nn.functional.cross_entropy(
            logits, torch.tensor(tokens[-20:], dtype=torch.long), reduction="sum"
        )
        assert row.tokens == 20
        assert row.nll == pytest.approx(float(expected), rel=1e-5)
    assert len(set(found["nll"])) == 3


def test_the_shortest_length_says_which_tokens_count(
    make_tiny_model: Models, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = measured(PerplexitySuite([sample()], [32, 128]), make_tiny_model(), tiny_tokenizer)
    assert list(found["tokens"]) == [31, 31]


@given(tokens=st.integers(2, 400), length=st.integers(2, 200), stride=st.integers(1, 300))
def test_sliding_windows_predict_every_token_once(tokens: int, length: int, stride: int) -> None:
    predicted: list[int] = []
    for start, end, first in sliding_windows(tokens, length, stride):
        assert end - start <= length
        assert start < first, "the first token of a window is not predicted by it"
        predicted += range(first, end)
    assert predicted == list(range(1, tokens))


def test_the_table_by_hand() -> None:
    suite = PerplexitySuite([sample(0), sample(1)], [LENGTH])
    records = pd.DataFrame(
        [
            {"method": "none", "length": LENGTH, "nll": 200.0, "tokens": 100, "bytes": 400},
            {"method": "none", "length": LENGTH, "nll": 100.0, "tokens": 20, "bytes": 100},
        ]
    )
    row = suite.table(records).iloc[0]
    assert row["perplexity"] == pytest.approx(math.exp(300 / 120))
    assert row["per_byte"] == pytest.approx(math.exp(300 / 500))
    assert (row["documents"], row["tokens"]) == (2, 120)
    assert row["low"] <= row["perplexity"] <= row["high"]


def test_bytes_are_those_of_the_predicted_tokens(model_folder: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)  # byte-level, so that a letter may be two tokens
    text = "the window of a m\u00f6del ends"
    tokens = tokenizer(text)["input_ids"]
    assert byte_count(tokenizer, tokens, 1) == len(text.encode())  # all but <s>
    first = tokens.index(tokenizer(" of", add_special_tokens=False)["input_ids"][0])
    given = tokenizer.decode(tokens[:first], skip_special_tokens=True)
    assert byte_count(tokenizer, tokens, first) == len(text.encode()) - len(given.encode())


@pytest.mark.parametrize("protocol", ["full", "sliding"])
def test_what_attention_cannot_see_is_left_out(
    protocol: str, make_tiny_model: Models, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_tiny_model("llama")
    texts = [sample()]
    cut = PerplexitySuite(texts, [100, 128], protocol, 20, last=50, span=110)
    whole = PerplexitySuite(texts, [100, 110], protocol, 20, last=50)
    measures = (measured(suite, model, tiny_tokenizer)["nll"].tolist() for suite in (cut, whole))
    assert next(measures) == pytest.approx(next(measures), rel=1e-6)
