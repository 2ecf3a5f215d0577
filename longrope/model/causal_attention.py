"""Causal attention of the last queries of a long sequence to all keys up to each, without a mask of their product.

transformers masks, or takes the kernel's own causal mask, only where queries and keys are equally many. A chunk of
queries against the keys of the whole past needs the mask aligned at the bottom right: query i of Q may see the keys up
to K - Q + i of K.

Shapes: B rows, H heads, G heads of keys and values (H a multiple of G), Q queries, K keys, d and e elements a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

INDEXED = 2**31 - 1
"""Elements of a tensor that kernels with offsets of 32 bits can reach."""
_TILE = 1 << 23  # attention scores of a tile; a few float32 copies live at once, 32 MiB each
_TILE_KEYS = 256  # of a tile, at least
_WINDOW_BLOCK = 1024  # queries at a time of a sliding window


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of the last Q of K positions.

    Args:
        query: (B, H, Q, d).
        key: (B, G, K, d), K >= Q.
        value: (B, G, K, e).
        scale: of the scores.
        window: keys that a query sees at most, itself included; None for all.
        softcap: scores s become ``softcap * tanh(s / softcap)``; None for no cap.

    Returns:
        (B, Q, H, e), as transformers' attention functions do.
    """
    queries, keys = query.shape[2], key.shape[2]
    assert queries <= keys, (queries, keys)
    if window is not None and window >= keys:
        window = None
    on_cpu = query.device.type == "cpu"
    if softcap is not None or (on_cpu and query.shape[-1] != value.shape[-1]):
        kernel = partial(_tiled, scale=scale, window=window, softcap=softcap)
    elif window is not None:
        kernel = partial(_windowed, scale=scale, window=window)
    else:
        kernel = partial(_past_and_diagonal if on_cpu else _lower_right, scale=scale)
    return _by_heads(kernel, query, key, value)


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _by_heads(kernel: Kernel, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A kernel for equally many heads of queries and keys, on as many of them as its offsets reach."""
    rows, heads, queries, _ = query.shape
    groups = key.shape[1]
    step = _heads_at_once(key, value)
    if step == 0 and rows > 1:
        return torch.cat(
            [_by_heads(kernel, *(each[row : row + 1] for each in (query, key, value))) for row in range(rows)]
        )
    step = max(step, 1)
    if heads == groups <= step:
        return kernel(query, key, value).transpose(1, 2)
    grouped = query.unflatten(1, (groups, heads // groups))  # (B, G, H / G, Q, d)
    out = query.new_empty(rows, queries, groups, heads // groups, value.shape[3])
    for start in range(0, groups, step):
        part = slice(start, start + step)
        for member in range(heads // groups):
            attended = kernel(grouped[:, part, member], key[:, part], value[:, part])
            out[:, :, part, member] = attended.transpose(1, 2)
    return out.flatten(2, 3)


def _heads_at_once(key: torch.Tensor, value: torch.Tensor) -> int:
    """Heads of about equal calls, whose elements lie within reach: keys are views into those of all positions."""
    groups = key.shape[1]
    for calls in range(1, groups + 1):
        step = math.ceil(groups / calls)
        if max(_span(key[:, :step]), _span(value[:, :step])) <= INDEXED:
            return step
    return 0


def _span(states: torch.Tensor) -> int:
    """Elements from the first to the last one where they lie in memory."""
    return 1 + sum((size - 1) * stride for size, stride in zip(states.shape, states.stride(), strict=True))


def _past_and_diagonal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """On CPU, whose kernel aligns its causal mask at the top left: all of the past, and the square at the end.

    Both parts come with the logarithm of the sum of the exponentials of their scores, and so with their weights.
    """
    flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    square: torch.Tensor
    before: torch.Tensor
    past = key.shape[2] - query.shape[2]
    square, square_sum = flash(query, key[:, :, past:], value[:, :, past:], is_causal=True, scale=scale)
    if past == 0:
        return square
    before, before_sum = flash(query, key[:, :, :past], value[:, :, :past], scale=scale)
    weight = torch.sigmoid(square_sum - before_sum)[..., None]  # (B, H, Q, 1)
    return before.float().lerp_(square.float(), weight).to(query.dtype)


def _lower_right(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """On GPUs: the kernels that know a mask aligned at the bottom right; tiles for what they do not take."""
    parameters = SDPAParams(query, key, value, None, 0.0, False, False)
    # Of AMD's kernels nobody has seen here where they align such a mask.
    fused = query.device.type == "cuda" and torch.version.hip is None
    if not fused or not (can_use_flash_attention(parameters) or can_use_efficient_attention(parameters)):
        return _tiled(query, key, value, scale, None, None)
    mask: Any = causal_lower_right(query.shape[2], key.shape[2])
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _windowed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int) -> torch.Tensor:
    """Some queries at a time, with a mask of no more than the keys that any of them sees."""

    def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        seen = _seen(query, key, 0, key.shape[2], window)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)

    return _by_queries(masked, query, key, value, min(_WINDOW_BLOCK, max(window, 64)), window)


def _tiled(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Plain arithmetic on tiles with a running softmax (Milakov and Gimelshein 2018), for every case."""

    def tiles(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        rows, heads, queries, _ = query.shape
        keys = key.shape[2]
        top = query.new_full((rows, heads, queries, 1), -math.inf, dtype=torch.float32)
        total = torch.zeros_like(top)
        out = query.new_zeros(rows, heads, queries, value.shape[-1], dtype=torch.float32)
        step = max(_TILE_KEYS, _TILE // (rows * heads * queries))
        for start in range(0, keys, step):
            stop = min(start + step, keys)
            scores = (query @ key[:, :, start:stop].transpose(-1, -2)).float() * scale  # (B, H, Q, n)
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            if stop - 1 > keys - queries or window is not None:
                scores.masked_fill_(~_seen(query, key, start, stop, window), -math.inf)
            higher = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
            # Queries that have seen no key yet keep weights of 0, whatever the highest score.
            reference = higher.masked_fill(higher == -math.inf, 0.0)
            scores = scores.sub_(reference).exp_()
            decay = (top - reference).exp_()
            total = total * decay + scores.sum(dim=-1, keepdim=True)
            out = out * decay + (scores.to(value.dtype) @ value[:, :, start:stop]).float()
            top = higher
        return (out / total).to(query.dtype)

    rows, heads = query.shape[:2]
    return _by_queries(tiles, query, key, value, max(16, _TILE // (rows * heads * _TILE_KEYS)), window)


def _by_queries(
    kernel: Kernel, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, step: int, window: int | None
) -> torch.Tensor:
    """A kernel on some queries at a time, with the keys that any of them sees."""
    queries, past = query.shape[2], key.shape[2] - query.shape[2]
    parts = []
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        keys = slice(0 if window is None else max(0, past + start - window + 1), past + stop)
        parts.append(kernel(query[:, :, start:stop], key[:, :, keys], value[:, :, keys]))
    return torch.cat(parts, dim=2)


def _seen(query: torch.Tensor, key: torch.Tensor, start: int, stop: int, window: int | None) -> torch.Tensor:
    """Which of the keys from ``start`` to ``stop`` each query sees, (Q, stop - start)."""
    own = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=query.device)[:, None]
    other = torch.arange(start, stop, device=query.device)
    return other <= own if window is None else (other <= own) & (other > own - window)
