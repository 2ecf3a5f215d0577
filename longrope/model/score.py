"""Score a sample: its negative log-likelihood in blocks of 256 tokens under given factors.

The logits of a long sample never exist as a whole. Hidden states go through the output projection a slice at a time,
and each slice is reduced to sums before the next is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from longrope.model.architectures import architecture_for
from longrope.model.attach import Attachment, attached
from longrope.rope.factors import RopeFactors
from longrope.rope.rotary import Mode

BLOCK = 256
# Elements of one slice of float32 logits: 128 MiB.
_LOGITS = 1 << 25


def score_blocks(
    model: Any,
    tokens: Sequence[int] | npt.NDArray[Any] | torch.Tensor,
    factors: Sequence[RopeFactors],
    mode: Mode = "exact",
    attachment: Attachment | None = None,
) -> npt.NDArray[np.float64]:
    """NLL sums of a sample's blocks under each of several factors.

    The token at position t (1 <= t < T) is predicted from those before it and counts into block ``t // 256``, so the
    first block holds 255 predictions and the perplexity of a prefix of 256 k tokens is that of the first k blocks.

    Args:
        model: a causal language model without a policy attached, or with ``attachment``.
        tokens: token ids (T,), T >= 2.
        factors: C factors, scored together in one batch.
        mode: see :func:`longrope.model.attach.attach`.
        attachment: what is attached to the model already and shall stay; it is left unpinned.

    Returns:
        NLL sums in nats, float64, (C, ceil(T / 256)).
    """
    architecture = architecture_for(model.config)
    decoder = architecture.decoder_of(model)
    ids = torch.tensor(np.asarray(tokens), dtype=torch.long)
    length = len(ids)
    assert length >= 2, "a sample needs at least two tokens"
    count = len(factors)
    batch = ids.to(decoder.get_input_embeddings().weight.device).expand(count, length)  # (C, T)
    attaching = attached(model, factors[0], mode=mode) if attachment is None else _unpinned_after(attachment)
    with torch.inference_mode(), attaching as attachment:
        attachment.pin_rows(factors, length)
        hidden = decoder(input_ids=batch, use_cache=False).last_hidden_state  # (C, T, D)
        # On the CPU, where sums have one order on every run, and float64 exists whatever the device.
        sums = torch.zeros(count, math.ceil(length / BLOCK), dtype=torch.float64)
        step = _slice_length(count, model.config.vocab_size)
        for start in range(0, length - 1, step):
            stop = min(start + step, length - 1)
            logits = architecture.logits(model, hidden[:, start:stop]).float()  # (C, n, V)
            targets = batch[:, start + 1 : stop + 1].to(logits.device)  # (C, n)
            nll = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            blocks = torch.arange(start + 1, stop + 1) // BLOCK  # (n,)
            sums.index_add_(1, blocks, nll.view(count, -1).cpu().double())
            del logits
    return sums.numpy()


def perplexity(nll: float, tokens: int) -> float:
    """exp(total NLL / predicted tokens); infinite where that overflows."""
    mean = nll / tokens
    return math.exp(mean) if mean < 700 else math.inf


@contextmanager
def _unpinned_after(attachment: Attachment) -> Iterator[Attachment]:
    try:
        yield attachment
    finally:
        attachment.unpin()


def _slice_length(rows: int, vocabulary: int) -> int:
    """Positions per slice of logits: a whole number of blocks where that fits, at least 16."""
    fits = _LOGITS // (rows * vocabulary)
    return min(max(fits // BLOCK * BLOCK or fits, 16), 4096)
