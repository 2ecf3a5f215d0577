"""How long each row of a batch is in all: cached tokens included, padding not."""

from __future__ import annotations

from typing import Any

import torch


def cached_tokens(cache: Any) -> int:
    """Tokens per row, padding included, that a transformers cache holds; none where there is no cache."""
    return int(cache.get_seq_length()) if cache is not None else 0


def row_lengths(mask: Any, rows: int, length: int) -> list[int] | None:
    """Full length of each row.

    Args:
        mask: padding mask (B, T) over cached and new tokens, or None where nothing is padded.
        rows: B.
        length: cached and new tokens together, padding included.

    Returns:
        A length for each row; None for a mask of another form, which does not tell.
    """
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return [max(count, 1) for count in mask.sum(dim=-1).tolist()]
    return [length] * rows if mask is None else None
