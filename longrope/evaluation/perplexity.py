"""Perplexity at a list of lengths, per token and per byte.

``full``: each length is the context of the same last tokens of a document, so that lengths are compared on equal text.
A context begins as a text does for the model in use, with BOS where the tokenizer puts it there, also in mid-document.
``sliding``: the whole document is read in windows of the length that move by a stride, and a token is predicted from
the window that ends soonest after it (Press et al., arXiv 2108.12409, appendix B; stride 256 in YaRN and LongRoPE).
A length that the model's attention cannot see is measured with what it does see, and marked as truncated.
Per byte is exp(total NLL / bytes of the predicted tokens), which tokenizers do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from longrope.data.samples import Sample
from longrope.evaluation.bootstrap import bootstrap_ratio
from longrope.evaluation.suite import Item, Suite, by_key
from longrope.lengths import format_length
from longrope.model.score import perplexity, score_tokens
from longrope.rope.policy import RopePolicy

PROTOCOLS = ("full", "sliding")
STRIDE = 256


class PerplexitySuite(Suite):
    """Perplexity of documents.

    Args:
        samples: of equal numbers of tokens, at least as many as the longest length.
        lengths: context windows in tokens.
        protocol: ``full`` or ``sliding``.
        stride: tokens that a sliding window moves by.
        last: how many tokens at the end of each document count under ``full``; as many as the shortest length
            predicts when 0.
        span: tokens that the model's attention sees, where that is a limit: contexts of longer lengths are cut to it.
        front: special tokens with which every sample begins, and every context under ``full``.
    """

    name = "perplexity"

    def __init__(
        self,
        samples: Sequence[Sample],
        lengths: Sequence[int],
        protocol: str = "full",
        stride: int = STRIDE,
        last: int = 0,
        span: int | None = None,
        front: int = 0,
    ) -> None:
        assert protocol in PROTOCOLS
        self._samples = {sample.digest: sample for sample in samples}
        self._protocol, self._stride = protocol, stride
        self._span = span or max(lengths)
        shortest = min(*lengths, self._span)
        self._front = front
        self._last = last or shortest - max(front, 1)
        assert self._last <= shortest - max(front, 1), "every length predicts all the tokens that count"
        self.items = [
            Item(f"{sample.digest}/{format_length(length)}", length) for length in lengths for sample in samples
        ]
        self._lengths = {key: item.length for key, item in by_key(self.items).items()}

    def describe(self) -> dict[str, Any]:
        counted = {"last": self._last, "front": self._front} if self._protocol == "full" else {"stride": self._stride}
        return {"protocol": self._protocol, **counted, "samples": list(self._samples)}

    def measure(self, model: Any, tokenizer: Any, policy: RopePolicy, item: str) -> dict[str, Any]:
        sample, length = self._samples[item.partition("/")[0]], self._lengths[item]
        factors = policy.factors_for(length)
        tokens, seen = sample.tokens, min(length, self._span)
        if self._protocol == "full":
            first = len(tokens) - self._last
            context = np.concatenate([tokens[: self._front], tokens[self._front - seen :]])
            nll = score_tokens(model, context, factors, seen - self._last).sum()
        else:
            first = 1
            nll = sum(
                score_tokens(model, tokens[start:end], factors, predicted - start).sum()
                for start, end, predicted in sliding_windows(len(tokens), seen, self._stride)
            )
        if not np.isfinite(nll):
            raise FloatingPointError("the loss is not finite; try bfloat16 or float32")
        return {
            "document": sample.name,
            "nll": float(nll),
            "tokens": len(tokens) - first,
            "bytes": byte_count(tokenizer, tokens, first),
        }

    def table(self, records: pd.DataFrame) -> pd.DataFrame:
        return perplexity_table(records)


def perplexity_table(records: pd.DataFrame) -> pd.DataFrame:
    """Perplexity by method and length, with its spread over documents.

    Args:
        records: with columns ``nll``, ``tokens`` and, for the perplexity per byte, ``bytes``.
    """
    rows = []
    for (method, length), group in records.groupby(["method", "length"], sort=False):
        nll, tokens = (group[name].to_numpy(dtype=np.float64) for name in ("nll", "tokens"))
        spread = bootstrap_ratio(nll, tokens, np.exp)
        per_byte = {"per_byte": float(np.exp(nll.sum() / group["bytes"].sum()))} if "bytes" in group else {}
        rows.append(
            {
                "method": method,
                "length": length,
                "perplexity": perplexity(float(nll.sum()), int(tokens.sum())),
                "error": spread.error,
                "low": spread.low,
                "high": spread.high,
                **per_byte,
                "documents": len(group),
                "tokens": int(tokens.sum()),
            }
        )
    return pd.DataFrame(rows)


def sliding_windows(tokens: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """Start and end of each window, and the first position that it predicts; together they predict 1 .. tokens - 1.

    Windows overlap by one token at least, for the first token of a window is not predicted by it.
    """
    stride = min(stride, length - 1)
    assert stride >= 1
    windows, predicted = [], 1
    for start in range(0, tokens, stride):
        end = min(start + length, tokens)
        windows.append((start, end, predicted))
        predicted = end
        if end == tokens:
            break
    return windows


def byte_count(tokenizer: Any, tokens: Sequence[int] | np.ndarray[Any, Any], first: int) -> int:
    """Bytes in UTF-8 that the tokens from position ``first`` on add to the text."""
    ids = [int(token) for token in tokens]
    whole, given = (
        tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for part in (ids, ids[:first])
    )
    return len(whole.encode()) - len(given.encode())
